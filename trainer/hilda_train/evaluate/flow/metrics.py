"""Three-way end point error (Chodosh et al., "Re-Evaluating LiDAR Scene Flow", WACV 2024; av2-api's evaluation).

The mean distance between predicted and true end points, over all test points of each of three groups: what stands in
no box, what stands in a box, and what moves; and the mean of the three. Most points stand: one mean over all of them
would say little about motion.

Legend: N points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROUPS = ("background static", "foreground static", "foreground dynamic")
LEFT_OUT = -1
"""Group of a point that counts nowhere."""


def group_of(foreground: NDArray[np.bool_], dynamic: NDArray[np.bool_], counts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N,) index into `GROUPS`, `LEFT_OUT` for points that do not count."""
    group: NDArray[np.int64] = np.where(foreground, 1 + dynamic.astype(np.int64), 0)
    return np.where(counts, group, LEFT_OUT)


class EndPointErrors:
    """Sums over test frames.

    Attributes:
        points: (3,) of each group.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(len(GROUPS))
        self.points = np.zeros(len(GROUPS), np.int64)

    def add(self, predicted_m: NDArray[np.floating], true_m: NDArray[np.floating], group: NDArray[np.int64]) -> None:
        """Count points.

        Args:
            predicted_m: (N, 3) motion.
            true_m: (N, 3) motion.
            group: (N,) see `group_of`.
        """
        error = np.linalg.norm(predicted_m.astype(np.float64) - true_m.astype(np.float64), axis=1)
        counted = group >= 0
        self._sums += np.bincount(group[counted], error[counted], minlength=len(GROUPS))
        self.points += np.bincount(group[counted], minlength=len(GROUPS))

    @property
    def mean_m(self) -> NDArray[np.float64]:
        """(3,) of each group; NaN for one without points."""
        with np.errstate(invalid="ignore"):
            return self._sums / self.points

    @property
    def three_way_m(self) -> float:
        """Mean over the three groups; NaN where one has no point."""
        return float(self.mean_m.mean())
