"""The words of `hilda-train structure | knn | zeroshot | robustness`; everything heavy is imported inside a body."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilda_schema.completion import folders, scenes_of_store, targets_of_store, words
from hilda_train import completion
from hilda_train.evaluate.cli import (
    Caches,
    ClassFile,
    Device,
    Json,
    Like,
    Out,
    ProtocolName,
    Seed,
    Set,
    TestFrames,
    TestScenes,
    TrainFrames,
    TrainScenes,
    What,
    Workers,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]
RunCaches = Annotated[
    list[str],
    typer.Option(
        "--cache", "-c", help="The run's caches, in its order. Repeatable.", show_default=False, autocompletion=folders
    ),
]


def structure(
    run_folder: Run,
    cache: RunCaches,
    step: Annotated[
        list[int] | None, typer.Option("--step", min=0, help="Checkpoint to judge; default: the newest. Repeatable.")
    ] = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(
            "--scene",
            help="Pattern of scenes to judge by; default: held-out ones. Repeatable.",
            autocompletion=scenes_of_store,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG to draw the curves over steps to.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare how teacher, student and backbone are built: Gram gap, CKA, uniformity, tolerance, RankMe."""
    from hilda_train.evaluate import structure_commands

    structure_commands.structure(run_folder, cache, step or [], scene or [], out, as_json=as_json)


def knn(
    what: What,
    classes: ClassFile,
    cache: Caches = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours that vote.")] = 20,
    like: Like = None,
    train_scenes: TrainScenes = None,
    test_scenes: TestScenes = None,
    train_frames: TrainFrames = None,
    test_frames: TestFrames = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Classify points by the labelled features nearest to theirs; nothing is trained."""
    from hilda_train.evaluate import untrained_commands
    from hilda_train.evaluate.commands import Asked

    asked = Asked(
        "probe", what, tuple(cache or []), classes, "scalr", like, tuple(train_scenes or []),
        tuple(test_scenes or []), train_frames, test_frames, seed=seed, out=out, as_json=as_json,
    )  # fmt: skip
    untrained_commands.knn(asked, k)


def zeroshot(
    run_folder: Run,
    classes: ClassFile,
    cache: RunCaches,
    prototypes: Annotated[
        Path | None,
        typer.Option(help="Vectors of class names, by hilda-cache prototypes; default: the teacher's class means."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="TEACHER/LAYER whose head predicts; default: the last level's.", autocompletion=targets_of_store
        ),
    ] = None,
    train_scenes: TrainScenes = None,
    test_scenes: TestScenes = None,
    train_frames: TrainFrames = None,
    test_frames: TestFrames = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Classify points by what the student's head says of them, without showing the student a label."""
    from hilda_train.evaluate import untrained_commands
    from hilda_train.evaluate.commands import Asked

    asked = Asked(
        "probe", str(run_folder), tuple(cache), classes, "scalr", None, tuple(train_scenes or []),
        tuple(test_scenes or []), train_frames, test_frames, seed=seed, out=out, as_json=as_json,
    )  # fmt: skip
    untrained_commands.zeroshot(asked, prototypes, target)


def robustness(
    what: What,
    classes: ClassFile,
    cache: Caches = None,
    baseline: Annotated[
        str, typer.Option(help="What mCE compares with: random, a run or a file of weights.")
    ] = "random",
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this corruption, e.g. fog or beam_missing. Repeatable.",
            autocompletion=words(completion.CORRUPTIONS),
        ),
    ] = None,
    protocol: ProtocolName = "scalr",
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
    """Probe on clean sweeps, test on corrupted ones: mCE against a baseline, and mRR."""
    from hilda_train.evaluate import robustness_commands
    from hilda_train.evaluate.commands import Asked

    asked = Asked(
        "probe", what, tuple(cache or []), classes, protocol, like, tuple(train_scenes or []),
        tuple(test_scenes or []), train_frames, test_frames, seed=seed, assignments=tuple(set_ or []),
        device=device, workers=workers, out=out, as_json=as_json,
    )  # fmt: skip
    robustness_commands.robustness(asked, baseline, corruption or [])
