"""Which frames are trained on together: (t-1, t0, t1) from one scene of one cache.

HilDA (arXiv 2606.20189, section 3.4) reads features at t-1 and t0 and forecasts the occupancy at t1. A frame at the
border of a scene has no neighbour on one side; it still teaches the point objectives, and only its occupancy term is
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hilda_schema.errors import TrainError

TOLERANCE = 0.3  # of the gap: a neighbour may be this much nearer or farther in time


@dataclass(frozen=True, slots=True, order=True)
class Clip:
    """Rows of one cache's frames; a neighbour that is not there is None."""

    cache: int
    previous: int | None
    current: int
    next: int | None

    @property
    def whole(self) -> bool:
        """Whether both neighbours are there, so that occupancy can be learned."""
        return self.previous is not None and self.next is not None


def clips_of(frames: pa.Table, cache: int, gap_s: float) -> list[Clip]:
    """Clips of one cache, one per frame, in the order of its frames.

    Args:
        frames: the cache's table: `scene`, `stamp_ns`.
        cache: its number among the caches trained on.
        gap_s: wanted time between neighbours; the nearest frame within 30 % of it is taken.
    """
    scenes = np.asarray(frames.column("scene").to_pylist(), dtype=object)
    stamps_s = frames.column("stamp_ns").to_numpy() / 1e9
    clips: list[Clip] = []
    for scene in dict.fromkeys(scenes):
        rows = np.flatnonzero(scenes == scene)
        rows = rows[np.argsort(stamps_s[rows], kind="stable")]
        before = nearest_in_time(stamps_s[rows], -gap_s, TOLERANCE * gap_s)
        after = nearest_in_time(stamps_s[rows], gap_s, TOLERANCE * gap_s)
        clips += [Clip(cache, _row(rows, before[k]), int(row), _row(rows, after[k])) for k, row in enumerate(rows)]
    return sorted(clips, key=lambda clip: clip.current)


def nearest_in_time(stamps_s: NDArray[np.float64], offset_s: float, tolerance_s: float) -> NDArray[np.int64]:
    """For each of ascending stamps, the position of the one nearest to it plus the offset; -1 where none is near.

    Args:
        stamps_s: (F,) ascending.
        offset_s: seconds, of either sign.
        tolerance_s: how far from there is still near.

    Returns:
        (F,) int64.
    """
    wanted = stamps_s + offset_s
    right = np.searchsorted(stamps_s, wanted).clip(0, len(stamps_s) - 1)
    left = (right - 1).clip(0)
    nearest = np.where(np.abs(stamps_s[left] - wanted) <= np.abs(stamps_s[right] - wanted), left, right)
    near = np.abs(stamps_s[nearest] - wanted) <= tolerance_s
    return np.where(near, nearest, -1)


def _row(rows: NDArray[np.int64], position: np.int64) -> int | None:
    return int(rows[position]) if position >= 0 else None


def require_whole_clips(clips: Sequence[Clip], gap_s: float, spacing_s: float) -> None:
    """Refuse to train an occupancy objective that no clip can feed.

    Raises:
        TrainError: naming the gap asked for and the spacing that the frames have.
    """
    if not any(clip.whole for clip in clips):
        raise TrainError(
            f"no frame has neighbours {gap_s:g} s before and after it: the frames are {spacing_s:g} s apart",
            f"set data.gap_s={spacing_s:g}, or train without occupancy: objectives.occupancy.kind=none",
        )


def median_spacing_s(frames: pa.Table) -> float:
    """Median time between consecutive frames of a scene, in seconds; 0 where no scene has two."""
    scenes = frames.column("scene").to_pylist()
    stamps_s = frames.column("stamp_ns").to_numpy() / 1e9
    steps = [stamps_s[k + 1] - stamps_s[k] for k in range(len(scenes) - 1) if scenes[k] == scenes[k + 1]]
    return round(float(np.median(steps)), 3) if steps else 0.0
