"""What looks like a point to a backbone: the nearest features in other sweeps, cameras and moments.

Legend: N points of a recorded sweep, P point-camera pairs, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilda_schema.errors import UsageError
from hilda_schema.reader import Cache, Frame
from hilda_train.data.augment import IDENTITY
from hilda_train.data.batches import naming
from hilda_train.data.scans import ScanOptions, see_points, sensor_name
from hilda_train.evaluate.restore import spread
from hilda_train.students import Student


@dataclass(frozen=True, slots=True, eq=False)
class Alike:
    """One frame, and how alike its points are to the one that was asked for."""

    key: str
    after_s: float  # from the frame that was asked for
    xyz_m: NDArray[np.float32]  # (N, 3) LiDAR frame
    cosine: NDArray[np.float32]  # (N,) NaN for points that the student does not see
    best: int  # row of the most alike point; in the frame asked for that point itself
    camera: str  # that sees it, or else the most alike point that some camera sees; empty where none sees any
    size_px: tuple[int, int]
    uv_px: NDArray[np.float64]  # (P, 2) that camera's pairs
    pair_point: NDArray[np.int64]  # (P,) their points
    shown: int  # row of the point that the camera's picture is about; -1 without one


def retrieve(
    student: Student, options: ScanOptions, cache: Cache, frame: int, point: int, frames: int
) -> Iterator[Alike]:
    """The frame asked for, then others of the cache, evenly spread over it, in their order.

    Args:
        student: in evaluation mode.
        options: how it sees a sweep.
        cache: whose frames.
        frame: row of one.
        point: row of one of its points.
        frames: how many, the one asked for included.

    Raises:
        UsageError: there is no such frame or point, or the student does not see it.
    """
    if not 0 <= frame < len(cache):
        raise UsageError(f"{cache.url} has {len(cache)} frames, there is no frame {frame}")
    asked = cache[frame]
    if not 0 <= point < len(asked.points):
        raise UsageError(f"frame {asked.key} has {len(asked.points)} points, there is no point {point}")
    features = features_of(student, options, asked)
    wanted = features[point]
    if bool(wanted.isnan().any()):
        raise UsageError(
            f"the student does not see point {point} of frame {asked.key}", "choose one within the range of its voxels"
        )
    yield _alike(asked, asked, features, wanted, point)
    for row in spread([row for row in range(len(cache)) if row != frame], frames - 1):
        if len((other := cache[row]).points):
            yield _alike(asked, other, features_of(student, options, other), wanted, None)


@torch.no_grad()
def features_of(student: Student, options: ScanOptions, frame: Frame) -> Tensor:
    """(N, C) unit features of the last level at all recorded points; NaN where the student sees none."""
    sensor, points = sensor_name(frame.cache.manifest.recipe.dataset), frame.points
    with naming(frame):
        everyone, rng = np.arange(len(points)), np.random.default_rng(0)
        batch, kept = see_points(points, everyone, sensor, IDENTITY, options, rng)
        found = student.encode(batch)[-1].at_points().float()
    features = torch.full((len(points), found.shape[1]), torch.nan)
    features[torch.from_numpy(kept)] = torch.nn.functional.normalize(found, dim=1)
    return features


def _alike(asked: Frame, frame: Frame, features: Tensor, wanted: Tensor, point: int | None) -> Alike:
    cosine = (features @ wanted).numpy()
    best = int(np.nanargmax(cosine)) if point is None else point
    pairs = frame.pairs
    shown = best if best in pairs.point else _most_alike(pairs.point, cosine)
    camera = int(pairs.camera[pairs.point == shown][0]) if shown >= 0 else -1
    own = pairs.camera == camera
    name = frame.camera_names[camera] if camera >= 0 else ""
    return Alike(
        key=str(frame.key),
        after_s=(frame.stamp_ns - asked.stamp_ns) / 1e9,
        xyz_m=frame.points.xyz_m,
        cosine=cosine,
        best=best,
        camera=name,
        size_px=frame.camera_sizes_px[name] if name else (1, 1),
        uv_px=pairs.uv_px[own],
        pair_point=pairs.point[own].astype(np.int64),
        shown=shown,
    )


def _most_alike(points: NDArray[np.uint32], cosine: NDArray[np.float32]) -> int:
    """Of some points the most alike one; -1 where the student sees none of them."""
    known = points[~np.isnan(cosine[points])]
    return int(known[np.argmax(cosine[known])]) if len(known) else -1


def limits(found: Sequence[Alike]) -> tuple[float, float]:
    """Of a colour scale: from the median of all points to the most alike one of another frame."""
    cosine = np.concatenate([each.cosine for each in found])
    low = float(np.nanmedian(cosine))
    return low, max([float(each.cosine[each.best]) for each in found[1:]] or [1.0])
