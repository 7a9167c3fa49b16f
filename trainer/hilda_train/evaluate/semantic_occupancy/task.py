"""`hilda-train occupancy`: frames with a past and a future, the head on them, mIoU at every step.

Legend: T steps, Z layers, K classes, H = W grid cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hilda_schema.errors import UsageError
from hilda_schema.reader import Cache, Frame
from hilda_train.data.augment import Augmentation
from hilda_train.evaluate.classes import Classes, load_classes
from hilda_train.evaluate.commands import Asked, number
from hilda_train.evaluate.heads.bev import BevHead, Seen
from hilda_train.evaluate.heads.commands import HeadTask, Score, Verdict
from hilda_train.evaluate.heads.items import FrameItems, Item, ItemOptions, augmented_pose, rows_after, t0_SE3
from hilda_train.evaluate.heads.protocol import load_head_protocol
from hilda_train.evaluate.metrics import Confusion
from hilda_train.evaluate.semantic_occupancy.head import OccupancyHead, OccupancyTarget
from hilda_train.evaluate.semantic_occupancy.labels import UNKNOWN, semantic_occupancy
from hilda_train.evaluate.semantic_occupancy.protocol import OccupancyProtocol
from hilda_train.evaluate.splits import Place, labelled
from hilda_train.objectives.bev import BevGrid
from hilda_train.students import Student
from hilda_train.students.points import PointBatch


class OccupancyItems(FrameItems[OccupancyTarget]):
    """Frames, the ones before them and those that follow."""

    def __init__(
        self,
        urls: Sequence[str],
        places: Sequence[Place],
        options: ItemOptions,
        classes: Classes,
        protocol: OccupancyProtocol,
    ) -> None:
        super().__init__(urls, places, options)
        self.classes, self.protocol = classes, protocol
        self._rows: dict[str, list[tuple[int | None, ...]]] = {}

    def make(self, frame: Frame, augmentation: Augmentation, rng: np.random.Generator) -> Item[OccupancyTarget]:
        """Two sweeps, and what fills the cells now and later."""
        cache = frame.cache
        if cache.url not in self._rows:
            self._rows[cache.url] = steps_of(cache, self.protocol)
        before, *future = self._rows[cache.url][frame.index]
        assert before is not None  # only such frames are chosen
        previous = cache[before]
        sweeps = [self.see(each, augmentation, rng)[0] for each in (previous, frame)]
        pose = t0_SE3(frame, previous)
        poses = torch.stack([augmented_pose(each, augmentation) for each in (pose, np.eye(4))])
        later = [None if row is None else cache[row] for row in future]
        cells = torch.stack([self._cells(frame, each, augmentation) for each in (frame, *later)])
        return Item(str(frame.key), PointBatch.cat(sweeps), poses, OccupancyTarget(cells))

    def _cells(self, frame: Frame, later: Frame | None, augmentation: Augmentation) -> Tensor:
        """(Z, H, W) what a sweep says; all unknown where there is none or it has no labels."""
        protocol, grid = self.protocol, grid_of(self.protocol)
        if later is None or later.points.label is None:
            return torch.full((protocol.layers, grid.cells, grid.cells), UNKNOWN, dtype=torch.int8)
        pose = augmentation.homogeneous @ t0_SE3(frame, later)
        xyz_m = later.points.xyz_m.astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
        label = self.classes.merge(later.points.label, later.cache.manifest.recipe.dataset.name)
        return semantic_occupancy(
            torch.from_numpy(xyz_m.astype(np.float32)),
            torch.from_numpy(label),
            torch.from_numpy(pose[:3, 3].astype(np.float32)),
            grid,
            protocol.layers,
            len(self.classes.names),
            min_range_m=protocol.min_range_m,
        )


def grid_of(protocol: OccupancyProtocol) -> BevGrid:
    """Cells and height band."""
    return BevGrid(protocol.bev.range_m, protocol.bev.cell_m, protocol.z_min_m, protocol.z_max_m)


def steps_of(cache: Cache, protocol: OccupancyProtocol) -> list[tuple[int | None, ...]]:
    """For each frame the row of the one before, then those of the future steps."""
    offsets_s = [-protocol.gap_s, *((step + 1) * protocol.gap_s for step in range(protocol.horizon))]
    return rows_after(cache, offsets_s, protocol.gap_s)


@dataclass(frozen=True, slots=True, eq=False)
class OccupancyTask(HeadTask[OccupancyTarget]):
    """Semantic occupancy."""

    classes: Classes
    protocol: OccupancyProtocol
    name: str = "occupancy"

    def usable(self, caches: Sequence[Cache], places: Sequence[Place]) -> list[Place]:
        """Frames with labels, a sweep before, and one after.

        Raises:
            UsageError: none, or the classes say nothing of a dataset.
        """
        for cache in caches:
            self.classes.table(cache.manifest.recipe.dataset.name)
        rows = [steps_of(cache, self.protocol) for cache in caches]
        found = [
            (cache, row)
            for cache, row in labelled(caches, places)
            if rows[cache][row][0] is not None and rows[cache][row][1] is not None
        ]
        if not found:
            raise UsageError(
                f"none of {len(places)} frames has one {self.protocol.gap_s:g} s before and one after",
                "set gap_s to the time between frames, e.g. --set gap_s=0.1",
            )
        return found

    def items(self, urls: Sequence[str], places: Sequence[Place], options: ItemOptions) -> OccupancyItems:
        """The frames as items."""
        return OccupancyItems(urls, places, options, self.classes, self.protocol)

    def head(self, student: Student, *, frozen: bool) -> OccupancyHead:
        """The backbone with the task's head."""
        return OccupancyHead(student, len(self.classes.names), self.protocol, frozen=frozen)

    def about(self) -> dict[str, Any]:
        """Classes."""
        return {"classes": self.classes.name}

    def judge(self, model: BevHead[OccupancyTarget], seen: Iterable[Seen[OccupancyTarget]]) -> Verdict:
        """Predict the cells of the test frames."""
        assert isinstance(model, OccupancyHead)
        counted = [StepScore(len(self.classes.names)) for _ in range(self.protocol.horizon + 1)]
        for each in seen:
            predicted = model.predict(each).cpu()
            for step, cells, said in zip(counted, each.target.cells.cpu(), predicted, strict=True):
                step.add(cells, said)
        return self._verdict(counted)

    def _verdict(self, counted: Sequence[StepScore]) -> Verdict:
        times = [f"{step * self.protocol.gap_s:g} s" for step in range(len(counted))]
        means = [step.miou for step in counted]
        scores = [Score("mIoU, mean over steps", float(np.mean(means)), "%")]
        scores += [Score(f"mIoU at {time}", mean, "%") for time, mean in zip(times, means, strict=True)]
        scores += [
            Score(f"IoU of occupied at {time}", step.occupied_iou, "%")
            for time, step in zip(times, counted, strict=True)
        ]
        per_step = [
            {"after": time, "iou": {n: number(v) for n, v in zip(self.classes.names, step.iou, strict=True)},
             "known_cells": int(step.confusion.counts.sum())}
            for time, step in zip(times, counted, strict=True)
        ]  # fmt: skip
        return Verdict(tuple(scores), {"per_step": per_step})


class StepScore:
    """Cells of one step over all test frames; K classes and free.

    Attributes:
        confusion: over K + 1 classes, the last one free.
    """

    def __init__(self, classes: int) -> None:
        self.confusion = Confusion(classes + 1)

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """Count the known cells of one frame; (Z, H, W) int8 both."""
        self.confusion.add(truth.flatten().long().numpy(), predicted.flatten().long().numpy())

    @property
    def iou(self) -> list[float]:
        """(K,) of each class; free cells are not one, but a class predicted in one counts against it. NaN for none."""
        return [float(value) for value in self.confusion.iou[:-1]]

    @property
    def miou(self) -> float:
        """Mean over the classes that occur or are predicted; NaN where none does."""
        known = [value for value in self.iou if not np.isnan(value)]
        return float(np.mean(known)) if known else float("nan")

    @property
    def occupied_iou(self) -> float:
        """Of occupied against free, whatever the class; NaN where nothing is occupied or said to be."""
        counts = self.confusion.counts
        hits, total = int(counts[:-1, :-1].sum()), int(counts.sum() - counts[-1, -1])
        return hits / total if total else float("nan")


def make_task(asked: Asked) -> OccupancyTask:
    """The task that is asked for.

    Raises:
        UsageError: an unknown protocol or class file, or something is wrong in one.
    """
    protocol = load_head_protocol(OccupancyProtocol, __package__ or "", asked.protocol, asked.assignments)
    return OccupancyTask(load_classes(asked.classes), protocol)
