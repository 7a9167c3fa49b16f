"""What `hilda-train probe` and `hilda-train finetune` do once their options are understood."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hilda_schema.durable import write_atomically
from hilda_schema.errors import TrainError, UsageError
from hilda_schema.reader import Cache, open_cache
from hilda_schema.terminal import counted, say
from hilda_train.commands import pick_device
from hilda_train.config import FitConfig
from hilda_train.config.data import DataConfig
from hilda_train.config.student import WaffleIronConfig
from hilda_train.evaluate.backbones import RANDOM, TEACHER, config_of, load_subject
from hilda_train.evaluate.classes import Classes, load_classes
from hilda_train.evaluate.head import Scores
from hilda_train.evaluate.metrics import Absent
from hilda_train.evaluate.protocols import Protocol, StageConfig, load_protocol
from hilda_train.evaluate.segment import Segmenter, depth_of
from hilda_train.evaluate.splits import (
    Place,
    Wanted,
    few,
    frames_of,
    labelled,
    parse_frames,
    require_apart,
    scene_of,
)
from hilda_train.evaluate.sweeps import require_sensors, sweep_scan_options
from hilda_train.evaluate.teacher import POINTS_PER_FRAME, TeacherProbe, find_layer
from hilda_train.evaluate.training import Feed, Model, Task, learn_and_test, student_feed, teacher_feed
from hilda_train.prepare import pinned_urls
from hilda_train.run import describe_caches
from hilda_train.train_state import seed_random

Evaluation = Literal["probe", "finetune"]

Usable = Callable[[Sequence[Cache], Sequence[Place]], list[Place]]
"""Which frames have what a task needs of them; an error where none has."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of both commands."""

    evaluation: Evaluation
    what: str  # a run's folder, a file of weights, "random" or "teacher"
    caches: tuple[str, ...]
    classes: str
    protocol: str
    like: str | None = None
    train_scenes: tuple[str, ...] = ()
    test_scenes: tuple[str, ...] = ()
    train_frames: str | None = None
    test_frames: str | None = None
    share_percent: float = 100.0
    split: str = "scenes"
    seed: int = 0
    assignments: tuple[str, ...] = ()
    device: str = "auto"
    workers: int = 0
    out: Path | None = None
    predictions: Path | None = None
    as_json: bool = False
    layer: str | None = None  # "teacher/layer", of a teacher


def evaluate(asked: Asked) -> None:
    """Train a head, test it, tell the result.

    Raises:
        HildaError: whatever is wrong with the request, the caches or the weights.
    """
    device = pick_device(asked.device)
    require_places(asked)
    result, scores = segmentation(asked, device)
    if asked.predictions is not None:
        save_predictions(asked.predictions, scores)
    tell(result, table(result), asked)


def tell(result: dict[str, Any], words: str, asked: Asked) -> None:
    """Print a result, as words or as JSON, and write it where that is asked for."""
    text = json.dumps(result, indent=2)
    if asked.out is not None:
        write_atomically(asked.out, text.encode() + b"\n")
    print(text if asked.as_json else words)  # noqa: T201  the result
    if asked.out is not None:
        say(f"wrote {asked.out}")


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """Before the first step of a head's training."""

    caches: tuple[Cache, ...]
    all_train: int  # frames of which `task.train` are used
    about: dict[str, Any]  # what is judged
    model: Model  # on the device
    task: Task
    feed: Feed
    unused: tuple[str, ...]  # of the protocol


def make_ready(asked: Asked, device: torch.device) -> Ready:
    """Open, choose, load a backbone.

    Raises:
        HildaError: whatever is wrong with the request, the caches or the weights.
    """
    if asked.layer is not None:
        raise UsageError("--layer is for the probe of a teacher", "leave it out, or write: hilda-train probe teacher")
    config = config_of(asked.what, asked.like)
    task, caches, all_train = choose_task(asked, config.data)
    protocol, stage = task.protocol, task.stage
    require_sensors(sweep_scan_options(config, protocol.intensity, None), caches)
    deterministic()
    subject = load_subject(asked.what, with_drop_path(config, stage.drop_path), asked.seed)
    seed_random(asked.seed)
    frozen = asked.evaluation == "probe"
    model = Segmenter(subject.student, len(task.classes.names), norm=protocol.head_norm, frozen=frozen).to(device)
    feed = student_feed(task, config, frozen=frozen)
    unused = () if frozen or depth_of(subject.student) else numbered_layers_only(stage)
    return Ready(caches, all_train, subject.about, model, task, feed, unused)


def make_teacher_ready(asked: Asked, device: torch.device) -> Ready:
    """Open, choose, find a teacher's layer.

    Raises:
        HildaError: whatever is wrong with the request or the caches.
    """
    if asked.like is None and not asked.test_scenes and asked.test_frames is None:
        raise UsageError(
            "nothing says on which scenes a teacher is tested",
            "add --like RUN for those that a run held out, --test-scenes, or --train-frames and --test-frames",
        )
    data = DataConfig() if asked.like is None else config_of(RANDOM, asked.like).data
    task, caches, all_train = choose_task(asked, data)
    layer, width = find_layer(asked.layer, caches)
    deterministic()
    seed_random(asked.seed)
    model = TeacherProbe(width, len(task.classes.names), norm=task.protocol.head_norm).to(device)
    about = {"kind": "teacher", "teacher": layer.teacher, "layer": layer.layer, "caches": describe_caches(caches)}
    unused = ("augment", "keep", "loss_at", "max_points", "intensity")
    return Ready(caches, all_train, about, model, task, teacher_feed(task, layer, width), unused)


def choose_task(asked: Asked, data: DataConfig) -> tuple[Task, tuple[Cache, ...], int]:
    """What is trained and tested, the caches, and how many frames there are to train on.

    Raises:
        HildaError: whatever is wrong with the request or the caches.
    """
    protocol, classes = load_protocol(asked.protocol, asked.assignments), load_classes(asked.classes)
    urls, caches = open_caches(asked, data, classes)
    all_train, train, test = choose_frames(asked, data, caches)
    task = Task(
        urls, tuple(train), tuple(test), classes, protocol, stage_of(asked, protocol), asked.seed, asked.workers,
        keep_predictions=asked.predictions is not None,
    )  # fmt: skip
    return task, caches, len(all_train)


def open_caches(asked: Asked, data: DataConfig, classes: Classes) -> tuple[tuple[str, ...], tuple[Cache, ...]]:
    """The caches asked for, else the run's own.

    Raises:
        UsageError: none, or one of a dataset that the classes say nothing of.
    """
    urls = asked.caches or data.caches
    if not urls:
        raise UsageError("no cache is given", "add --cache STORE")
    caches = tuple(open_cache(url) for url in urls)
    for cache in caches:
        classes.table(cache.manifest.recipe.dataset.name)
    return pinned_urls(urls, caches), caches


def require_places(asked: Asked) -> None:
    """Refuse files that cannot be written before hours are spent on what would go into them.

    Raises:
        UsageError: naming the file.
    """
    if asked.predictions is not None and asked.predictions.suffix != ".npz":
        raise UsageError(f"--predictions {asked.predictions} does not end in .npz")
    for path in (asked.out, asked.predictions):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
        if path.is_dir():
            raise UsageError(f"{path} is a folder", "give a file")


def segmentation(asked: Asked, device: torch.device) -> tuple[dict[str, Any], Scores]:
    """The result of a probe or a fine-tuning, as JSON can hold it, and the scores that it was made from."""
    of_teacher = asked.what == TEACHER and asked.evaluation == "probe"
    ready = make_teacher_ready(asked, device) if of_teacher else make_ready(asked, device)
    task, caches = ready.task, ready.caches
    scores = learn_and_test(ready.model, task, ready.feed, device)
    frames = {"train": describe(caches, task.train), "test": describe(caches, task.test)}
    split = {"share_percent": asked.share_percent, "rule": asked.split, "of_frames": ready.all_train}
    return {
        "evaluation": asked.evaluation,
        **scored(task.classes, scores, task.protocol.absent),
        "weights": ready.about,
        **({"split": split} if asked.evaluation == "finetune" else {}),
        **frames,
        "seed": asked.seed,
        "caches": describe_caches(caches),
        "protocol": describe_protocol(asked, ready),
        "training": {"steps": scores.steps, "tested_after_epoch": scores.epoch, "loss_of_epochs": list(scores.losses)},
    }, scores


def scored(classes: Classes, scores: Scores, absent: Absent) -> dict[str, Any]:
    """What the test set says, as JSON can hold it."""
    confusion, seen = scores.confusion, scores.in_camera
    return {
        "miou": number(confusion.miou(absent)),
        "visible": {"miou": number(seen.miou(absent)), "points": int(seen.counts.sum())},
        "accuracy": number(confusion.accuracy),
        "class_accuracy": number(confusion.class_accuracy),
        "classes": classes.name,
        "per_class": per_class(classes.names, scores),
        "points": {
            "judged": int(confusion.counts.sum()),
            "without_label": confusion.unlabelled,
            "from_nearest": scores.borrowed,
            "without_camera": scores.unseen,
        },
        "confusion": confusion.counts.tolist(),
    }


def deterministic() -> None:
    """Use no operation whose result depends on timing."""
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses to multiply on a GPU


def choose_frames(
    asked: Asked, data: DataConfig, caches: Sequence[Cache], usable: Usable = labelled
) -> tuple[list[Place], list[Place], list[Place]]:
    """All training frames, those of them that are used, and test frames; all of them `usable`.

    Where no scenes are asked for, a backbone's own are taken: it is tested on what its pre-training held out.

    Raises:
        UsageError: nothing is left, or a frame would be in both.
    """
    frames = [parse_frames(asked.train_frames, "--train-frames"), parse_frames(asked.test_frames, "--test-frames")]
    by_time = asked.test_frames is not None
    if not asked.test_scenes and not data.held_out and not by_time:
        raise UsageError(
            "no scene was held out in pre-training, so nothing says what to test on",
            "give --test-scenes, or --train-frames and --test-frames to split scenes by time",
        )
    if asked.train_scenes:
        train = Wanted(asked.train_scenes, (), frames[0], "--train-scenes")
    else:
        # What is asked for testing is not trained on, unless scenes are split by time.
        spared = () if by_time else (asked.test_scenes or data.held_out)
        named = "data.scenes, less data.held_out and --test-scenes"
        train = Wanted(data.scenes, spared, frames[0], named)
    if asked.test_scenes:
        test = Wanted(asked.test_scenes, (), frames[1], "--test-scenes")
    elif by_time:
        test = Wanted(asked.train_scenes or data.scenes, (), frames[1], "--test-frames")
    else:
        test = Wanted(data.held_out, (), frames[1], "data.held_out")
    tested, trained = (usable(caches, frames_of(caches, wanted)) for wanted in (test, train))
    require_apart(trained, tested, caches)
    return trained, few(caches, trained, asked.share_percent, asked.split), tested


def stage_of(asked: Asked, protocol: Protocol) -> StageConfig:
    """The training that is asked for."""
    if asked.evaluation == "probe":
        return protocol.probe
    return protocol.finetune_all if asked.share_percent == 100 and protocol.finetune_all else protocol.finetune


def with_drop_path(config: FitConfig, drop_path: float) -> FitConfig:
    """A config whose WaffleIron drops paths with this probability; a MinkUNet cannot."""
    if not isinstance(config.student, WaffleIronConfig):
        return config
    return config.model_copy(update={"student": config.student.model_copy(update={"drop_path": drop_path})})


def numbered_layers_only(stage: StageConfig) -> tuple[str, ...]:
    """What a stage asks of a backbone with numbered layers; said, because this one has none."""
    unused = [name for name, neutral in (("layer_decay", 1.0), ("drop_path", 0.0)) if getattr(stage, name) != neutral]
    for name in unused:
        say(f"  {name} = {getattr(stage, name):g} is not used: it is for backbones with numbered layers")
    return tuple(unused)


def describe_protocol(asked: Asked, ready: Ready) -> dict[str, Any]:
    """The protocol's name and all that was used of it."""
    protocol, stage = ready.task.protocol, ready.task.stage.model_dump(mode="json")
    shared = protocol.model_dump(mode="json", exclude={"about", "probe", "finetune", "finetune_all"})
    drawn = {"points_per_frame": POINTS_PER_FRAME} if isinstance(ready.model, TeacherProbe) else {}
    name = Path(asked.protocol).stem
    return {"name": name, **shared, **drawn, asked.evaluation: stage, "not_used": list(ready.unused)}


def describe(caches: Sequence[Cache], places: Sequence[Place]) -> dict[str, Any]:
    """Frames, for a result."""
    scenes = dict.fromkeys(scene_of(caches, place)[1] for place in places)
    return {"frames": len(places), "scenes": list(scenes)}


def per_class(names: Sequence[str], scores: Scores) -> list[dict[str, Any]]:
    """One row for each class."""
    confusion = scores.confusion
    predicted = confusion.counts.sum(axis=0)
    rows = zip(names, confusion.iou, confusion.points, predicted, strict=True)
    return [{"name": a, "iou": number(b), "points": int(c), "predicted": int(d)} for a, b, c, d in rows]


def number(value: float) -> float | None:
    """A number, or None for NaN, which JSON does not know."""
    return None if np.isnan(value) else float(value)


def save_predictions(path: Path, scores: Scores) -> None:
    """Write an .npz: `keys` (frames), `starts` (first point of each, and the end), `truth`, `predicted` (all points).

    Raises:
        TrainError: it cannot be written.
    """
    sizes = [len(each.truth) for each in scores.predictions]
    try:
        np.savez_compressed(
            path,
            keys=np.array([each.key for each in scores.predictions]),
            starts=np.cumsum([0, *sizes]),
            truth=np.concatenate([each.truth for each in scores.predictions]),
            predicted=np.concatenate([each.predicted for each in scores.predictions]),
        )
    except OSError as error:
        raise TrainError(f"{path} cannot be written: {error.strerror}") from error


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    weights = result["weights"]
    what = weights["kind"]
    if what == "run":
        what = f"{weights['name']}, step {weights['step']}"
    elif what == TEACHER:
        what = f"teacher {weights['teacher']}/{weights['layer']}"
    train, test, points, visible = result["train"], result["test"], result["points"], result["visible"]
    rule = f", {result['split']['share_percent']:g} % by {result['split']['rule']}" if "split" in result else ""
    nearest = f"{points['from_nearest']:,} read the nearest point"
    lines = [
        f"{result['evaluation']} of {what} ({result['protocol']['name']}, {result['classes']}, seed {result['seed']})",
        f"trained on {counted(train['frames'], 'frame')} of {counted(len(train['scenes']), 'scene')}{rule}; "
        f"tested on {test['frames']} of {len(test['scenes'])}",
        f"{'class':28}{'IoU %':>7}{'points':>12}",
        *(f"{row['name']:28}{percent(row['iou']):>7}{row['points']:>12,}" for row in result["per_class"]),
        f"{'mIoU':28}{percent(result['miou']):>7}{points['judged']:>12,}",
        f"{'mIoU where a camera sees':28}{percent(visible['miou']):>7}{visible['points']:>12,}",
        f"{'accuracy':28}{percent(result['accuracy']):>7}",
        f"{points['without_label']:,} points without a label; "
        + (f"{points['without_camera']:,} that no camera sees" if weights["kind"] == TEACHER else nearest),
    ]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A share in per cent; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"
