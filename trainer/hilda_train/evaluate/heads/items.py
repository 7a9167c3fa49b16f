"""What the tasks' datasets share: frames, neighbours in time, sweeps as the student sees them.

Legend: F points of a recorded sweep, N points that the student sees of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilda_schema.errors import HildaError
from hilda_schema.reader import Cache, Frame
from hilda_train.data.augment import IDENTITY, Augmentation, AugmentOptions, draw
from hilda_train.data.clips import TOLERANCE, nearest_in_time
from hilda_train.data.scans import ScanOptions, see_points, sensor_name
from hilda_train.evaluate.frames import CacheFrames
from hilda_train.evaluate.splits import Place
from hilda_train.students.points import PointBatch

T = TypeVar("T")


class Tensors:
    """Base of dataclasses that hold tensors, and move with them."""

    def to(self, device: torch.device) -> Any:
        """The same on a device."""
        moved = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        return replace(self, **{name: v.to(device) if isinstance(v, Tensor) else v for name, v in moved.items()})  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, eq=False)
class Item(Generic[T]):
    """One frame of a task."""

    key: str
    points: PointBatch  # one item for each sweep, oldest first
    t0_SE3_sweep: Tensor  # (S, 4, 4) float32 of each sweep, as augmented
    target: T


@dataclass(frozen=True, slots=True)
class ItemOptions:
    """How frames are prepared."""

    scan: ScanOptions
    augment: AugmentOptions | None
    seed: int
    judged: bool  # whether what is needed to judge is wanted too


class FrameItems(CacheFrames[Item[T]]):
    """Frames of caches as a task's items."""

    def __init__(self, urls: Sequence[str], places: Sequence[Place], options: ItemOptions) -> None:
        super().__init__(urls, places, options.seed)
        self.options = options

    def prepare(self, frame: Frame, rng: np.random.Generator) -> Item[T]:
        """One item, augmented where that is asked for."""
        augment = self.options.augment
        return self.make(frame, draw(augment, rng) if augment else IDENTITY, rng)

    @abstractmethod
    def make(self, frame: Frame, augmentation: Augmentation, rng: np.random.Generator) -> Item[T]:
        """Prepare one frame."""

    def see(
        self, frame: Frame, augmentation: Augmentation, rng: np.random.Generator
    ) -> tuple[PointBatch, NDArray[np.int64]]:
        """A frame's sweep as the student sees it, of one item, and (N,) the rows of its points among the F recorded."""
        sensor, points = sensor_name(frame.cache.manifest.recipe.dataset), frame.points
        return see_points(points, np.arange(len(points)), sensor, augmentation, self.options.scan, rng)


def augmented_pose(t0_SE3_sweep: NDArray[np.float64], augmentation: Augmentation) -> Tensor:
    """(4, 4) float32 pose between two sweeps that are both augmented."""
    return torch.from_numpy(augmentation.pose(t0_SE3_sweep).astype(np.float32))


def t0_SE3(frame: Frame, other: Frame) -> NDArray[np.float64]:
    """(4, 4) takes points of another frame's LiDAR to this one's, as recorded."""
    pose: NDArray[np.float64] = np.linalg.inv(frame.world_SE3_lidar) @ other.world_SE3_lidar
    return pose


def together(items: Sequence[Item[T] | HildaError]) -> list[Item[T]] | HildaError:
    """A batch, as a list; the first error among the items, where there is one."""
    errors = [item for item in items if isinstance(item, HildaError)]
    return errors[0] if errors else [item for item in items if isinstance(item, Item)]


def rows_after(cache: Cache, offsets_s: Sequence[float], gap_s: float) -> list[tuple[int | None, ...]]:
    """For each frame of a cache, the rows of its scene's frames at some times from it.

    Args:
        cache: whose frames.
        offsets_s: wanted times from each frame; negative for the past.
        gap_s: time between frames; another frame counts where it is nearer than 30 % of this.
    """
    scenes = np.asarray(cache.frames["scene"].to_pylist(), dtype=object)
    stamps_s = (cache.frames["stamp_ns"].to_numpy() - cache.frames["stamp_ns"].to_numpy().min(initial=2**62)) / 1e9
    found: list[tuple[int | None, ...]] = [()] * len(scenes)
    for scene in dict.fromkeys(scenes):
        rows = np.flatnonzero(scenes == scene)
        rows = rows[np.argsort(stamps_s[rows], kind="stable")]
        columns = [nearest_in_time(stamps_s[rows], offset, TOLERANCE * gap_s) for offset in offsets_s]
        for row, positions in zip(rows, zip(*columns, strict=True), strict=True):
            found[row] = tuple(int(rows[k]) if k >= 0 else None for k in positions)
    return found
