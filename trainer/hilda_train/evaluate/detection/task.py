"""`hilda-train detect`: frames with boxes, the head on them, the score of what it finds.

Legend: M boxes of a frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hilda_schema.boxes import Boxes, BoxLabels, read_boxes
from hilda_schema.reader import Cache, Frame
from hilda_train.data.augment import Augmentation
from hilda_train.evaluate.commands import Asked, number
from hilda_train.evaluate.detection.classes import IGNORED, BoxClasses, load_box_classes
from hilda_train.evaluate.detection.head import DetectionHead, Predicted
from hilda_train.evaluate.detection.metrics import (
    DISTANCES_M,
    ERRORS,
    ClassScore,
    FoundBoxes,
    class_score,
    overall,
)
from hilda_train.evaluate.detection.protocol import DetectionProtocol
from hilda_train.evaluate.detection.targets import BoxTarget, box_target
from hilda_train.evaluate.heads.bev import BevHead, Seen
from hilda_train.evaluate.heads.commands import HeadTask, Score, Verdict, annotated
from hilda_train.evaluate.heads.items import FrameItems, Item, ItemOptions, augmented_pose
from hilda_train.evaluate.heads.protocol import load_head_protocol
from hilda_train.evaluate.splits import Place
from hilda_train.students import Student

_UNITS = {"translation": "m", "scale": "1 - IoU", "orientation": "rad", "velocity": "m/s"}


class BoxItems(FrameItems[BoxTarget]):
    """Annotated frames."""

    def __init__(
        self, urls: Sequence[str], places: Sequence[Place], options: ItemOptions, labels: BoxLabels,
        classes: BoxClasses, protocol: DetectionProtocol,
    ) -> None:  # fmt: skip
        super().__init__(urls, places, options)
        self.labels, self.classes, self.protocol = labels, classes, protocol

    def make(self, frame: Frame, augmentation: Augmentation, rng: np.random.Generator) -> Item[BoxTarget]:
        """One sweep, and its boxes that count; to learn from, only those on the map."""
        points, _ = self.see(frame, augmentation, rng)
        boxes, label = counting(self.labels[frame.key], self.classes, self.labels.about.dataset, self.protocol)
        target = box_target(boxes, label, augmentation)
        if not self.options.judged:
            target = target.take(self.protocol.bev.grid().cell_of(target.centre_m)[1])
        return Item(str(frame.key), points, augmented_pose(np.eye(4), augmentation)[None], target)


def counting(
    boxes: Boxes, classes: BoxClasses, dataset: str, protocol: DetectionProtocol
) -> tuple[Boxes, NDArray[np.int64]]:
    """The M boxes that count: of a class, with points inside, within the class's range; and their classes, (M,)."""
    label = classes.merge(boxes, dataset)
    reach_m = np.array([each.range_m for each in classes.classes.values()])
    near = np.linalg.norm(boxes.centre_m[:, :2], axis=1) < reach_m[label]
    kept = (label != IGNORED) & (boxes.points >= protocol.min_points) & near
    return boxes.take(kept), label[kept]


@dataclass(frozen=True, slots=True, eq=False)
class DetectionTask(HeadTask[BoxTarget]):
    """Detection."""

    labels: BoxLabels
    classes: BoxClasses
    protocol: DetectionProtocol
    name: str = "detect"

    def usable(self, caches: Sequence[Cache], places: Sequence[Place]) -> list[Place]:
        """Annotated frames."""
        self.classes.table(self.labels.about.dataset)
        return annotated(self.labels, caches, places)

    def items(self, urls: Sequence[str], places: Sequence[Place], options: ItemOptions) -> BoxItems:
        """The frames as items."""
        return BoxItems(urls, places, options, self.labels, self.classes, self.protocol)

    def head(self, student: Student, *, frozen: bool) -> DetectionHead:
        """The backbone with the task's head."""
        return DetectionHead(student, len(self.classes.names), self.protocol, frozen=frozen)

    def about(self) -> dict[str, Any]:
        """Classes and labels."""
        return {"classes": self.classes.name, "labels": {"sha256": self.labels.sha256}}

    def judge(self, model: BevHead[BoxTarget], seen: Iterable[Seen[BoxTarget]]) -> Verdict:
        """Find boxes in the test frames, and score them."""
        assert isinstance(model, DetectionHead)
        found, truth = [], []
        for frame, each in enumerate(seen):
            truth.append(_true(each.target, frame))
            found.append(_found(model.predict(each), frame))
        return verdict(truth, found, self.classes)


Labelled = tuple[NDArray[np.int64], FoundBoxes]
"""Boxes of one frame with their classes."""


def verdict(truth: Sequence[Labelled], found: Sequence[Labelled], classes: BoxClasses) -> Verdict:
    """Score predictions: of every class those within its range. One entry a frame: classes (P,) and boxes."""
    scores = {}
    for label, (name, about) in enumerate(classes.classes.items()):
        true, predicted = (_of_class(each, label, about.range_m) for each in (truth, found))
        scores[name] = class_score(true, predicted, front=about.front, turns=about.turns, moves=about.moves)
    total = overall(list(scores.values()))
    listed = [Score("mAP", total.mean_ap, "%"), Score("detection score", total.summed_up, "%")]
    listed += [Score(f"{name} error", total.errors[name], _UNITS[name], "lower") for name in ERRORS]
    listed += [Score(f"AP {name}", each.mean_ap, "%") for name, each in scores.items() if each.true]
    return Verdict(tuple(listed), {"per_class": [_row(name, each) for name, each in scores.items()]})


def _row(name: str, score: ClassScore) -> dict[str, Any]:
    return {
        "name": name,
        "boxes": score.true,
        "predicted": score.predicted,
        "ap": {f"{m:g} m": number(value) for m, value in zip(DISTANCES_M, score.ap, strict=True)},
        "errors": {error: number(value) for error, value in score.errors.items()},
    }


def _of_class(frames: Sequence[Labelled], label: int, range_m: float) -> FoundBoxes:
    together = FoundBoxes.cat([boxes for _, boxes in frames])
    labels = np.concatenate([each for each, _ in frames])
    rows = (labels == label) & (np.linalg.norm(together.centre_m, axis=1) < range_m)
    return FoundBoxes(
        together.frame[rows], together.centre_m[rows], together.size_m[rows], together.yaw_rad[rows],
        together.velocity_mps[rows], together.score[rows],
    )  # fmt: skip


def _true(target: BoxTarget, frame: int) -> Labelled:
    target = target.to(torch.device("cpu"))
    front = target.front.double().numpy()
    return target.label.numpy(), FoundBoxes(
        frame=np.full(len(target), frame),
        centre_m=target.centre_m[:, :2].double().numpy(),
        size_m=target.size_m.double().numpy(),
        yaw_rad=np.arctan2(front[:, 1], front[:, 0]),
        velocity_mps=target.velocity_mps.double().numpy(),
        score=np.ones(len(target)),
    )


def _found(predicted: Predicted, frame: int) -> Labelled:
    return predicted.label, FoundBoxes(
        frame=np.full(len(predicted.label), frame),
        centre_m=predicted.centre_m[:, :2],
        size_m=predicted.size_m,
        yaw_rad=predicted.yaw_rad,
        velocity_mps=predicted.velocity_mps,
        score=predicted.score,
    )


def make_task(asked: Asked, labels: Path) -> DetectionTask:
    """The task that is asked for.

    Raises:
        UsageError: an unknown protocol or file of classes, or something is wrong in one.
        LabelError: the label file cannot be read or trusted.
    """
    protocol = load_head_protocol(DetectionProtocol, __package__ or "", asked.protocol, asked.assignments)
    return DetectionTask(read_boxes(labels), load_box_classes(asked.classes), protocol)
