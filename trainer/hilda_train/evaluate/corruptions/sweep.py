"""What a corruption is given and what it gives back.

Legend: N points of the sweep, M points of the corrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilda_schema.reader import PointArrays

BANDS = 64  # of elevation, where the dataset does not say which laser saw a point


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """A sweep as recorded."""

    xyz_m: NDArray[np.float32]  # (N, 3) LiDAR frame, z up
    intensity: NDArray[np.float32]  # (N,) in the dataset's own scale, not negative
    ground: NDArray[np.bool_]  # (N,)
    ring: NDArray[np.uint8] | None = None  # (N,) laser index

    @classmethod
    def of(cls, points: PointArrays) -> Sweep:
        """A cached frame's."""
        return cls(points.xyz_m, points.intensity, points.ground, points.ring)


@dataclass(frozen=True, slots=True, eq=False)
class Corrupted:
    """A corrupted sweep, and where each of its points comes from."""

    xyz_m: NDArray[np.float32]  # (M, 3)
    intensity: NDArray[np.float32]  # (M,)
    source: NDArray[np.int64]  # (M,) row in the sweep; -1 for a return of something else, which has no label

    @classmethod
    def kept(cls, sweep: Sweep, rows: NDArray[np.int64]) -> Corrupted:
        """Some rows, (M,), of a sweep, as they were."""
        return cls(sweep.xyz_m[rows], sweep.intensity[rows], rows)


Corruption = Callable[[Sweep, int, np.random.Generator], Corrupted]


def ranges_m(sweep: Sweep) -> NDArray[np.float64]:
    """(N,) distance of each point from the sensor."""
    ranges: NDArray[np.float64] = np.linalg.norm(sweep.xyz_m.astype(np.float64), axis=1)
    return ranges


def beams_of(sweep: Sweep) -> tuple[NDArray[np.int64], int]:
    """Which beam each point belongs to, numbered from 0, and how many beams there are.

    From the ring where the dataset stores it. Otherwise from the elevation, cut into equal bands between its 0.5th and
    99.5th percentile: a real beam each where the sensor has at most so many, evenly spaced and not moved by the
    vehicle, and a stripe of the same width where not.

    Returns:
        (N,) beam of each point, and the number of beams that have points.
    """
    named: NDArray[np.integer]
    if sweep.ring is not None:
        named = sweep.ring
    else:
        horizontal = np.hypot(sweep.xyz_m[:, 0], sweep.xyz_m[:, 1])
        elevation = np.arctan2(sweep.xyz_m[:, 2], horizontal).astype(np.float64)
        low, high = np.percentile(elevation, (0.5, 99.5))
        share = (elevation - low) / max(high - low, 1e-9)
        named = (share * BANDS).astype(np.int64).clip(0, BANDS - 1)
    found, beam = np.unique(named, return_inverse=True)
    return beam.astype(np.int64), len(found)
