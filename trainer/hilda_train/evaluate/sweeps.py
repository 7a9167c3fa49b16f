"""Labelled sweeps: a cached frame as the student sees it, with the class of every point.

Legend: F points of the recorded sweep, N points that the student sees of it, B sweeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilda_schema.errors import HildaError, TrainError, UsageError
from hilda_schema.reader import Cache, Frame, PointArrays
from hilda_train.config import FitConfig
from hilda_train.config.data import IntensityConfig
from hilda_train.data.augment import IDENTITY, AugmentOptions, draw
from hilda_train.data.scans import INTENSITY, ScanOptions, see_points, sensor_name
from hilda_train.evaluate.classes import IGNORED, Classes
from hilda_train.evaluate.frames import CacheFrames
from hilda_train.evaluate.splits import Place
from hilda_train.prepare import scan_options
from hilda_train.students.neighbours import nearest_rows
from hilda_train.students.points import PointBatch

S = TypeVar("S", bound=np.generic)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """All of a recorded sweep, to be judged on."""

    truth: Tensor  # (F,) int64 classes
    reads: Tensor  # (F,) int64 which of the student's N points each takes its prediction from
    borrowed: int  # points that the student does not see, which take the nearest one's
    in_camera: Tensor  # (F,) bool: a camera sees the point


@dataclass(frozen=True, slots=True, eq=False)
class LabelledSweep:
    """One sweep."""

    key: str
    points: PointBatch  # of one item
    target: Tensor  # (N,) int64 classes
    whole: Whole | None  # where it is for judging


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBatch:
    """Several sweeps."""

    points: PointBatch  # of B items
    target: Tensor  # (N,) int64

    def to(self, device: torch.device) -> LabelledBatch:
        """The batch on a device."""
        return LabelledBatch(self.points.to(device, True), self.target.to(device, non_blocking=True))

    def pin_memory(self) -> LabelledBatch:
        """The batch in page-locked memory."""
        return LabelledBatch(self.points.pin_memory(), self.target.pin_memory())


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """How sweeps are prepared."""

    scan: ScanOptions
    augment: AugmentOptions | None
    classes: Classes
    seed: int
    judged: bool  # whether the whole of a sweep is wanted too


def sweep_scan_options(config: FitConfig, intensity: dict[str, IntensityConfig], max_points: int | None) -> ScanOptions:
    """How a pre-trained student's sweeps are prepared downstream: as then, but all around, and at most so many points.

    Args:
        config: of the pre-training.
        intensity: more sensors' statistics.
        max_points: kept around a random one; None for all.
    """
    options = scan_options(config)
    known = {**options.intensity, **{name: (each.mean, each.std) for name, each in intensity.items()}}
    return replace(
        options, cameras=None, frustum_only=False, visible_only=False, max_points=max_points, intensity=known
    )


def require_sensors(options: ScanOptions, caches: Sequence[Cache]) -> None:
    """Refuse a sensor whose intensity nothing standardises, before the first sweep is read.

    Raises:
        UsageError: naming it.
    """
    for cache in caches:
        sensor = sensor_name(cache.manifest.recipe.dataset)
        if "intensity" in options.channels and sensor not in {**INTENSITY, **options.intensity}:
            raise UsageError(
                f"no intensity statistics for {sensor}",
                f'--set "intensity.{sensor}={{mean: MEAN, std: STD}}" with numbers of its sweeps',
            )


class LabelledSweeps(CacheFrames[LabelledSweep]):
    """Frames of caches as labelled sweeps."""

    def __init__(self, urls: Sequence[str], places: Sequence[Place], options: SweepOptions) -> None:
        super().__init__(urls, places, options.seed)
        self.options = options

    def recorded(self, frame: Frame) -> tuple[PointArrays, NDArray[np.int64]]:
        """A sweep's F points, and (F,) which of the frame's points each is; negative for one that the frame has not."""
        return frame.points, np.arange(len(frame.points))

    def prepare(self, frame: Frame, rng: np.random.Generator) -> LabelledSweep:
        """A frame's sweep, augmented where that is asked for, with its classes."""
        options, (points, source) = self.options, self.recorded(frame)
        truth = torch.from_numpy(_of_source(classes_of(frame, options.classes), source, IGNORED))
        augmentation = draw(options.augment, rng) if options.augment else IDENTITY
        everyone, sensor = np.arange(len(points)), sensor_name(frame.cache.manifest.recipe.dataset)
        batch, kept = see_points(points, everyone, sensor, augmentation, options.scan, rng)
        rows = torch.from_numpy(kept)
        whole = None
        if options.judged:
            reads = nearest_seen(torch.from_numpy(points.xyz_m.copy()), rows)
            seen = torch.from_numpy(_of_source(in_camera(frame), source, False))
            whole = Whole(truth, reads, len(truth) - len(rows), seen)
        return LabelledSweep(str(frame.key), batch, truth[rows], whole)


def _of_source(values: NDArray[S], source: NDArray[np.int64], otherwise: int) -> NDArray[S]:
    """What the frame's points have, for the points of a sweep that was made of them."""
    found = np.full(len(source), otherwise, values.dtype)
    found[source >= 0] = values[source[source >= 0]]
    return found


def classes_of(frame: Frame, classes: Classes) -> NDArray[np.int64]:
    """(F,) class of each point of a labelled frame."""
    label = frame.points.label
    assert label is not None  # only such frames are chosen
    return classes.merge(label, frame.cache.manifest.recipe.dataset.name)


def in_camera(frame: Frame) -> NDArray[np.bool_]:
    """(F,) which points of a frame a camera sees, those that a nearer point hides among them."""
    seen = np.zeros(len(frame.points), np.bool_)
    seen[frame.pairs.point] = True
    return seen


def nearest_seen(xyz_m: Tensor, kept: Tensor) -> Tensor:
    """Which of the points that the student sees each recorded point takes its prediction from: itself or the nearest.

    Args:
        xyz_m: (F, 3) the recorded sweep.
        kept: (N,) ascending rows of it that the student sees.

    Returns:
        (F,) int64 in [0, N).

    Raises:
        TrainError: the student sees none.
    """
    if len(xyz_m) and not len(kept):
        raise TrainError("the student sees none of its points", "widen the range of student.voxels")
    reads = torch.full((len(xyz_m),), -1)
    reads[kept] = torch.arange(len(kept))
    unseen = (reads < 0).nonzero()[:, 0]
    reads[unseen] = nearest_rows(xyz_m[unseen], xyz_m[kept])
    return reads


def join_sweeps(sweeps: Sequence[LabelledSweep | HildaError]) -> LabelledBatch | HildaError:
    """A batch; the first error among the sweeps, where there is one."""
    good = [sweep for sweep in sweeps if isinstance(sweep, LabelledSweep)]
    errors = [sweep for sweep in sweeps if isinstance(sweep, HildaError)]
    if errors:
        return errors[0]
    return LabelledBatch(PointBatch.cat([sweep.points for sweep in good]), torch.cat([sweep.target for sweep in good]))


def only_one(items: Sequence[T | HildaError]) -> T | HildaError:
    """The item of a batch of one, as it is: what is judged goes by itself."""
    (item,) = items
    return item
