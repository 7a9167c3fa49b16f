"""How well the student predicts the teacher, on frames as they were recorded.

Legend: P pairs, N points, D teacher channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from hilda_train.data.clips import Clip
from hilda_train.evaluate.restore import Restored


@dataclass(frozen=True, slots=True)
class Agreement:
    """Sums over pairs; add two to have both."""

    pairs: int
    cosines: float  # sum of cos(student, teacher)
    direction: NDArray[np.float64]  # (D,) sum of the teacher's unit vectors

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.pairs + other.pairs, self.cosines + other.cosines, self.direction + other.direction)

    @property
    def student(self) -> float:
        """Mean cosine of the student's predictions."""
        return self.cosines / max(self.pairs, 1)

    @property
    def constant(self) -> float:
        """Mean cosine of the best prediction that is the same everywhere: the direction of the mean unit vector.

        For unit vectors q_i and a unit vector c, mean(c . q_i) = c . mean(q_i) <= |mean(q_i)|.
        """
        return float(np.linalg.norm(self.direction)) / max(self.pairs, 1)


@torch.no_grad()
def agreement(restored: Restored, clip: Clip) -> dict[str, Agreement]:
    """Compare all pairs of a clip's sweeps, per target: "teacher/layer" -> sums."""
    batch, targets = restored.batch(clip)
    learner = restored.learner
    assert learner.point is not None
    levels = learner.student.encode(batch.points)
    rows = [level.point_row[batch.pair_point] for level in levels]
    projected = learner.point.project([level.feats for level in levels], rows)
    found = {}
    names = restored.prepared.tokens.layers
    for target, student, teacher, taught in zip(names, projected, targets.layers, targets.taught, strict=True):
        unit = F.normalize(teacher[taught].double(), dim=1)
        cosines = (F.normalize(student[taught].double(), dim=1) * unit).sum()
        found[f"{target.teacher}/{target.layer}"] = Agreement(len(unit), float(cosines), unit.sum(dim=0).numpy())
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Teacher and student on one sweep, last target."""

    xyz_m: NDArray[np.float32]  # (N, 3) points that the student saw, LiDAR frame
    everywhere: NDArray[np.float32]  # (N, D) its prediction at all of them
    point: NDArray[np.int64]  # (P,) row of the point of each pair
    camera: NDArray[np.int64]  # (P,)
    uv_px: NDArray[np.float64]  # (P, 2)
    student: NDArray[np.float32]  # (P, D)
    teacher: NDArray[np.float32]  # (P, D)


@torch.no_grad()
def predict(restored: Restored, clip: Clip) -> Prediction:
    """Predict the last target for a clip's current sweep."""
    batch, targets = restored.batch(clip)
    learner = restored.learner
    assert learner.point is not None
    level = learner.student.encode(batch.points)[-1]
    head = learner.point.heads[-1]
    everywhere = head(level.feats)[level.point_row]
    scan = len(batch.pair_counts) - 1  # the current one is a clip's last
    inside = batch.points.batch_index == scan
    first_point = int((~inside).sum())
    pairs = slice(sum(batch.pair_counts[:-1]), None)
    point, group = batch.pair_point[pairs], batch.pair_group[pairs] - batch.group_starts[scan]
    frame = restored.prepared.caches[clip.cache][clip.current]
    sizes_px = np.array(list(frame.camera_sizes_px.values()), np.float64).reshape(-1, 2)
    camera = group.numpy()
    return Prediction(
        xyz_m=batch.points.xyz_m[inside].numpy(),
        everywhere=everywhere[inside].float().numpy(),
        point=(point - first_point).numpy(),
        camera=camera,
        uv_px=batch.uv01[pairs].numpy() * sizes_px[camera] - 0.5,
        student=everywhere[point].float().numpy(),
        teacher=targets.layers[-1][pairs].numpy(),
    )


def disagreement(seen: Prediction) -> NDArray[np.float64]:
    """(N,) 1 - cos(student, teacher) of each point, the mean over the cameras that see it; NaN where none does."""
    units = [
        each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (seen.student, seen.teacher)
    ]
    apart = 1 - (units[0].astype(np.float64) * units[1]).sum(axis=1)
    count = len(seen.xyz_m)
    pairs = np.bincount(seen.point, minlength=count)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.bincount(seen.point, apart, count) / pairs
    return mean
