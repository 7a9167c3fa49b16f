"""`hilda-train flow`: pairs of sweeps with tracked boxes, the head on them, the three-way end point error.

Legend: F points of the recorded first sweep, N of them that the student sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hilda_schema.boxes import BoxLabels, read_boxes
from hilda_schema.errors import UsageError
from hilda_schema.reader import Cache, Frame
from hilda_train.data.augment import Augmentation
from hilda_train.evaluate.commands import Asked
from hilda_train.evaluate.flow.head import FlowHead, FlowTarget
from hilda_train.evaluate.flow.labels import scene_flow
from hilda_train.evaluate.flow.metrics import GROUPS, EndPointErrors, group_of
from hilda_train.evaluate.heads.bev import BevHead, Seen
from hilda_train.evaluate.heads.commands import HeadTask, Score, Verdict, annotated
from hilda_train.evaluate.heads.items import FrameItems, Item, ItemOptions, augmented_pose, t0_SE3
from hilda_train.evaluate.heads.protocol import HeadProtocol, load_head_protocol
from hilda_train.evaluate.splits import Place
from hilda_train.evaluate.sweeps import nearest_seen
from hilda_train.students import Student
from hilda_train.students.points import PointBatch


class FlowItems(FrameItems[FlowTarget]):
    """Frames and those that follow them."""

    def __init__(
        self,
        urls: Sequence[str],
        places: Sequence[Place],
        options: ItemOptions,
        labels: BoxLabels,
        protocol: HeadProtocol,
    ) -> None:
        super().__init__(urls, places, options)
        self.labels, self.protocol = labels, protocol

    def make(self, frame: Frame, augmentation: Augmentation, rng: np.random.Generator) -> Item[FlowTarget]:
        """Two sweeps, and how the points of the first one move."""
        after = frame.cache[frame.cache.frames["next"][frame.index].as_py()]
        first, kept = self.see(frame, augmentation, rng)
        second, _ = self.see(after, augmentation, rng)
        pose, interval_s = t0_SE3(frame, after), (after.stamp_ns - frame.stamp_ns) / 1e9
        flow_m, group = self._labels(frame, after, pose, interval_s)
        judged = slice(None) if self.options.judged else slice(0)
        rows = torch.from_numpy(kept)
        xyz_m = torch.from_numpy(frame.points.xyz_m.copy())
        target = FlowTarget(
            xyz_m=first.xyz_m,
            flow_m=torch.from_numpy((flow_m[kept] @ augmentation.matrix.T).astype(np.float32)),
            group=torch.from_numpy(group[kept]),
            interval_s=interval_s,
            true_m=torch.from_numpy(flow_m.astype(np.float32))[judged],
            true_group=torch.from_numpy(group)[judged],
            reads=nearest_seen(xyz_m, rows) if self.options.judged else rows[:0],
        )
        poses = torch.stack([augmented_pose(np.eye(4), augmentation), augmented_pose(pose, augmentation)])
        return Item(str(frame.key), PointBatch.cat([first, second]), poses, target)

    def _labels(
        self, frame: Frame, after: Frame, pose: NDArray[np.float64], interval_s: float
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(F, 3) motion and (F,) group: of points off the ground, on the map, whose motion is known."""
        points = frame.points
        found = scene_flow(points.xyz_m, self.labels[frame.key], self.labels[after.key], pose, interval_s)
        near = (np.abs(points.xyz_m[:, :2]) < self.protocol.bev.range_m).all(axis=1)
        # What is in no box and not on the ground stands still; Argoverse 2 leaves the ground out as well.
        counts = found.valid & near & ~points.ground
        return found.flow_m, group_of(found.foreground, found.dynamic, counts)


@dataclass(frozen=True, slots=True, eq=False)
class FlowTask(HeadTask[FlowTarget]):
    """Scene flow."""

    labels: BoxLabels
    protocol: HeadProtocol
    name: str = "flow"

    def usable(self, caches: Sequence[Cache], places: Sequence[Place]) -> list[Place]:
        """Frames that are annotated, as is the next one.

        Raises:
            UsageError: none.
        """
        following = [cache.frames["next"].to_pylist() for cache in caches]
        found = [
            (cache, row) for cache, row in annotated(self.labels, caches, places) if following[cache][row] is not None
        ]
        found = [
            (cache, row)
            for cache, row in found
            if caches[cache].frames["key"][following[cache][row]].as_py() in self.labels
        ]
        if not found:
            raise UsageError(
                f"none of {len(places)} frames has a next one with boxes", "extract consecutive frames of a scene"
            )
        return found

    def items(self, urls: Sequence[str], places: Sequence[Place], options: ItemOptions) -> FlowItems:
        """The frames as items."""
        return FlowItems(urls, places, options, self.labels, self.protocol)

    def head(self, student: Student, *, frozen: bool) -> FlowHead:
        """The backbone with the task's head."""
        return FlowHead(student, self.protocol, frozen=frozen)

    def about(self) -> dict[str, Any]:
        """Labels."""
        return {"labels": {"sha256": self.labels.sha256}}

    def judge(self, model: BevHead[FlowTarget], seen: Iterable[Seen[FlowTarget]]) -> Verdict:
        """Predict the motion of the test frames' points, and hold it against standing still."""
        assert isinstance(model, FlowHead)
        errors, still, intervals_s = EndPointErrors(), EndPointErrors(), []
        for each in seen:
            true, group = each.target.true_m.cpu().numpy(), each.target.true_group.cpu().numpy()
            errors.add(model.predict(each).cpu().numpy(), true, group)
            still.add(np.zeros_like(true), true, group)
            intervals_s.append(each.target.interval_s)
        scores = [Score("EPE, three-way", errors.three_way_m, "m", "lower")]
        scores += [
            Score(f"EPE {name}", float(mean), "m", "lower") for name, mean in zip(GROUPS, errors.mean_m, strict=True)
        ]
        scores += [Score("standing still: three-way", still.three_way_m, "m", "lower")]
        scores += [Score(f"standing still: {GROUPS[-1]}", float(still.mean_m[-1]), "m", "lower")]
        points = dict(zip(GROUPS, errors.points.tolist(), strict=True))
        return Verdict(tuple(scores), {"points": points, "interval_s": float(np.median(intervals_s))})


def make_task(asked: Asked, labels: Path) -> FlowTask:
    """The task that is asked for.

    Raises:
        UsageError: an unknown protocol, or something is wrong in it.
        LabelError: the label file cannot be read or trusted.
    """
    protocol = load_head_protocol(HeadProtocol, __package__ or "", asked.protocol, asked.assignments)
    return FlowTask(read_boxes(labels), protocol)
