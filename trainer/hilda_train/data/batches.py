"""From clips to batches. A batch is what one step sees: sweeps joined, pairs renumbered, targets stacked.

Legend: S scans (sweeps that the student encodes), N points, P pairs, G (scan, camera) groups, B samples,
T samples that have an occupancy target, Y x X cells of the bird's-eye view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilda_schema.errors import HildaError, TrainError
from hilda_schema.reader import Cache, Frame, open_cache
from hilda_train.data.augment import Augmentation, AugmentOptions, draw
from hilda_train.data.clips import Clip
from hilda_train.data.occupancy import BevGrid, occupancy_target
from hilda_train.data.scans import Scan, ScanOptions, make_scan
from hilda_train.students.points import PointBatch


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One clip, prepared: the scans that the student encodes and the future that it forecasts."""

    key: str  # of the current frame, for messages
    seed: int  # of the step's own randomness for this sample: noise, queries
    current: Scan
    previous: Scan | None
    target: Tensor | None  # (Y, X) uint8, see data.occupancy; None without a future or a past


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one step sees."""

    keys: tuple[str, ...]  # (B) of the current frames
    seeds: tuple[int, ...]  # (B)
    points: PointBatch  # of S items
    pair_point: Tensor  # (P,) int64 row in points
    pair_group: Tensor  # (P,) int64 in [0, G)
    pair_row: Tensor  # (P,) int64 row among its frame's pairs; stays on the host, where tokens are read
    pair_counts: tuple[int, ...]  # (S) pairs of each scan; they follow one another
    uv01: Tensor  # (P, 2) float32
    group_starts: tuple[int, ...]  # (S + 1) first group of each scan, and G
    sources: tuple[tuple[int, int], ...]  # (S) cache and row
    scan_sample: Tensor  # (S,) int64 in [0, B)
    t0_SE3_scan: Tensor  # (S, 4, 4) float32
    histories: tuple[tuple[int, int], ...]  # (T) scans (t-1, t0) of each sample with a target
    target: Tensor  # (T, Y, X) uint8
    target_seeds: tuple[int, ...]  # (T) of the samples with a target

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return self._map(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; the loader calls this where it feeds a GPU."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, change: Callable[[Any], Any]) -> Batch:
        names = ("points", "pair_point", "pair_group", "uv01", "scan_sample", "t0_SE3_scan", "target")
        return replace(self, **{name: change(getattr(self, name)) for name in names})


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """How a clip is prepared."""

    scan: ScanOptions
    augment: AugmentOptions
    bev: BevGrid | None  # None: no occupancy objective, so neither past nor future is read
    unseen_is_free: bool
    history: bool  # whether t-1 is encoded too
    seed: int


class ClipDataset(torch.utils.data.Dataset[Sample | HildaError]):
    """Clips of several caches; items are asked for as (epoch, position, clip number).

    Everything random about an item follows from the seed and these three numbers, never from a worker's state: any
    number of workers gives the same samples, and so does a run that was interrupted.
    """

    def __init__(self, caches: Sequence[str], clips: Sequence[Clip], options: SampleOptions) -> None:
        self.urls, self.clips, self.options = tuple(caches), tuple(clips), options
        self._open: list[Cache] | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": None}  # a worker opens its own files

    @property
    def caches(self) -> list[Cache]:
        """The caches, opened on first use in this process."""
        if self._open is None:
            self._open = [open_cache(url) for url in self.urls]
        return self._open

    def __getitem__(self, item: tuple[int, int, int]) -> Sample | HildaError:
        """One sample; an error is handed on as a value, because a loader would wrap it in its own traceback."""
        epoch, position, number = item
        try:
            return self._make(self.clips[number], np.random.default_rng([self.options.seed, epoch, position]))
        except HildaError as error:
            return error

    def _make(self, clip: Clip, rng: np.random.Generator) -> Sample:
        options = self.options
        augmentation = draw(options.augment, rng)
        current = self.caches[clip.cache][clip.current]
        t0_SE3_world = np.linalg.inv(current.world_SE3_lidar)
        scan = self._scan(clip.cache, current, np.eye(4), augmentation, rng)
        previous = None
        if options.history and clip.previous is not None:
            frame = self.caches[clip.cache][clip.previous]
            previous = self._scan(clip.cache, frame, t0_SE3_world @ frame.world_SE3_lidar, augmentation, rng)
        target = None
        if options.bev is not None and clip.whole and clip.next is not None:
            future = self.caches[clip.cache][clip.next]
            pose = augmentation.homogeneous @ t0_SE3_world @ future.world_SE3_lidar
            with naming(future):
                target = _target(future, pose, options.bev, options.unseen_is_free)
        return Sample(str(current.key), int(rng.integers(2**62)), scan, previous, target)

    def _scan(
        self,
        cache: int,
        frame: Frame,
        t0_SE3_lidar: NDArray[np.float64],
        augmentation: Augmentation,
        rng: np.random.Generator,
    ) -> Scan:
        with naming(frame):
            return make_scan(frame, (cache, frame.index), t0_SE3_lidar, augmentation, self.options.scan, rng)


@contextmanager
def naming(frame: Frame) -> Iterator[None]:
    """Say of which frame an error is; those of the cache say it already.

    Raises:
        TrainError: the body met one, or a ValueError, an IndexError or a RuntimeError.
    """
    try:
        yield
    except TrainError as error:
        raise TrainError(f"frame {frame.key}: {error.message}", error.remedy) from error
    except (ValueError, IndexError, RuntimeError) as error:
        raise TrainError(f"frame {frame.key} cannot be prepared: {type(error).__name__}: {error}") from error


def _target(future: Frame, t0_SE3_next: NDArray[np.float64], grid: BevGrid, unseen_is_free: bool) -> Tensor:
    """Occupancy at t1 in the augmented frame of t0."""
    points = future.points
    xyz_m = points.xyz_m.astype(np.float64) @ t0_SE3_next[:3, :3].T + t0_SE3_next[:3, 3]
    return occupancy_target(
        torch.from_numpy(xyz_m.astype(np.float32)),
        torch.from_numpy(~points.ground),
        torch.from_numpy(t0_SE3_next[:3, 3].astype(np.float32)),
        grid,
        unseen_is_free=unseen_is_free,
    )


def collate(samples: Sequence[Sample | HildaError], cells: int) -> Batch | HildaError:
    """Join samples (`join`); the first error among them, where there is one."""
    whole = [sample for sample in samples if isinstance(sample, Sample)]
    errors = [sample for sample in samples if isinstance(sample, HildaError)]
    return errors[0] if errors else join(whole, cells)


def join(samples: Sequence[Sample], cells: int) -> Batch:
    """Join samples: for each its past scan, if it has one, then its current one.

    Args:
        samples: at least one.
        cells: along one side of the occupancy targets, which a batch without any must have too.
    """
    scans: list[Scan] = []
    scan_sample: list[int] = []
    histories, targets, target_seeds = [], [], []
    for index, sample in enumerate(samples):
        both = [scan for scan in (sample.previous, sample.current) if scan is not None]
        scans += both
        scan_sample += [index] * len(both)
        if sample.target is not None and len(both) == 2:
            histories.append((len(scans) - 2, len(scans) - 1))
            targets.append(sample.target)
            target_seeds.append(sample.seed)
    point_starts = np.cumsum([0] + [len(scan.points.xyz_m) for scan in scans])
    group_starts = np.cumsum([0] + [scan.cameras for scan in scans])
    return Batch(
        keys=tuple(sample.key for sample in samples),
        seeds=tuple(sample.seed for sample in samples),
        points=PointBatch.cat([scan.points for scan in scans]),
        pair_point=torch.cat([scan.pair_point + int(start) for scan, start in zip(scans, point_starts, strict=False)]),
        pair_group=torch.cat([scan.pair_camera + int(start) for scan, start in zip(scans, group_starts, strict=False)]),
        pair_row=torch.cat([scan.pair_row for scan in scans]),
        pair_counts=tuple(len(scan.pair_point) for scan in scans),
        uv01=torch.cat([scan.uv01 for scan in scans]),
        group_starts=tuple(int(start) for start in group_starts),
        sources=tuple(scan.source for scan in scans),
        scan_sample=torch.tensor(scan_sample),
        t0_SE3_scan=torch.stack([scan.t0_SE3_scan for scan in scans]),
        histories=tuple(histories),
        target=torch.stack(targets) if targets else torch.zeros((0, cells, cells), dtype=torch.uint8),
        target_seeds=tuple(target_seeds),
    )
