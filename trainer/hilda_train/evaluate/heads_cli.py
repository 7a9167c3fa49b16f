"""The words of `hilda-train detect | flow | occupancy | retrieve`; heavy things are imported inside a body."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilda_train.evaluate.cli import (
    Caches,
    ClassFile,
    Device,
    Json,
    Like,
    Out,
    Seed,
    Set,
    TestFrames,
    TestScenes,
    TrainFrames,
    TrainScenes,
    What,
    Workers,
)

HeadProtocolName = Annotated[str, typer.Option(help="standard, quick, or a YAML file.")]
Labels = Annotated[
    Path, typer.Option("--labels", "-l", help="Boxes of the drive, by hilda-cache labels.", show_default=False)
]
Finetune = Annotated[bool, typer.Option("--finetune", help="Train the backbone too; else it is frozen.")]
Share = Annotated[float, typer.Option(help="Per cent of the training frames: 1, 5, 10, 20, 25, 50 or 100.")]
Split = Annotated[str, typer.Option(help="How a share is taken: every k-th of the scenes, or frames.")]


def detect(
    what: What,
    labels: Labels,
    cache: Caches = None,
    classes: Annotated[str, typer.Option(help="nuscenes10, coarse3, or a YAML file.")] = "nuscenes10",
    finetune: Finetune = False,
    protocol: HeadProtocolName = "standard",
    share: Share = 100.0,
    split: Split = "scenes",
    like: Like = None,
    train_scenes: TrainScenes = None,
    test_scenes: TestScenes = None,
    train_frames: TrainFrames = None,
    test_frames: TestFrames = None,
    seed: Seed = 0,
    set_: Set = None,
    out: Out = None,
    as_json: Json = False,
    device: Device = "auto",
    workers: Workers = 0,
) -> None:
    """Find boxes with a centre-based head: mAP and errors as nuScenes defines them."""
    from hilda_train.evaluate.commands import Asked
    from hilda_train.evaluate.detection.task import make_task
    from hilda_train.evaluate.heads.commands import evaluate_head

    asked = Asked(
        "finetune" if finetune else "probe", what, tuple(cache or []), classes, protocol, like,
        tuple(train_scenes or []), tuple(test_scenes or []), train_frames, test_frames, share, split, seed,
        tuple(set_ or []), device, workers, out, as_json=as_json,
    )  # fmt: skip
    evaluate_head(asked, make_task(asked, labels))


def flow(
    what: What,
    labels: Labels,
    cache: Caches = None,
    finetune: Finetune = False,
    protocol: HeadProtocolName = "standard",
    share: Share = 100.0,
    split: Split = "scenes",
    like: Like = None,
    train_scenes: TrainScenes = None,
    test_scenes: TestScenes = None,
    train_frames: TrainFrames = None,
    test_frames: TestFrames = None,
    seed: Seed = 0,
    set_: Set = None,
    out: Out = None,
    as_json: Json = False,
    device: Device = "auto",
    workers: Workers = 0,
) -> None:
    """Say how every point moves until the next sweep: three-way end point error."""
    from hilda_train.evaluate.commands import Asked
    from hilda_train.evaluate.flow.task import make_task
    from hilda_train.evaluate.heads.commands import evaluate_head

    asked = Asked(
        "finetune" if finetune else "probe", what, tuple(cache or []), "", protocol, like,
        tuple(train_scenes or []), tuple(test_scenes or []), train_frames, test_frames, share, split, seed,
        tuple(set_ or []), device, workers, out, as_json=as_json,
    )  # fmt: skip
    evaluate_head(asked, make_task(asked, labels))


def occupancy(
    what: What,
    classes: ClassFile,
    cache: Caches = None,
    finetune: Finetune = False,
    protocol: HeadProtocolName = "standard",
    share: Share = 100.0,
    split: Split = "scenes",
    like: Like = None,
    train_scenes: TrainScenes = None,
    test_scenes: TestScenes = None,
    train_frames: TrainFrames = None,
    test_frames: TestFrames = None,
    seed: Seed = 0,
    set_: Set = None,
    out: Out = None,
    as_json: Json = False,
    device: Device = "auto",
    workers: Workers = 0,
) -> None:
    """Say what fills each cell now and in the seconds to come: mIoU at every step."""
    from hilda_train.evaluate.commands import Asked
    from hilda_train.evaluate.heads.commands import evaluate_head
    from hilda_train.evaluate.semantic_occupancy.task import make_task

    asked = Asked(
        "finetune" if finetune else "probe", what, tuple(cache or []), classes, protocol, like,
        tuple(train_scenes or []), tuple(test_scenes or []), train_frames, test_frames, share, split, seed,
        tuple(set_ or []), device, workers, out, as_json=as_json,
    )  # fmt: skip
    evaluate_head(asked, make_task(asked))


def retrieve(
    what: What,
    cache: Annotated[str, typer.Option("--cache", "-c", help="A cache, folder or URL.", show_default=False)],
    frame: Annotated[int, typer.Option(min=0, help="Which frame, counted from 0.", show_default=False)],
    point: Annotated[int, typer.Option(min=0, help="Which of its points, counted from 0.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.", show_default=False)],
    frames: Annotated[int, typer.Option(min=1, max=12, help="Frames to look in, spread over the cache.")] = 5,
    like: Like = None,
    seed: Seed = 0,
) -> None:
    """Draw where a backbone finds what looks like a point: in other frames, cameras and moments."""
    from hilda_train.evaluate import retrieval_commands

    retrieval_commands.draw(what, cache, frame, point, out, like, frames, seed)
