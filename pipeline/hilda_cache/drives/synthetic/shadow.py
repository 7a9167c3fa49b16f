"""Where the ground lies in shadow: a map of the scene's ground, one look-up per pixel.

Rays from the ground to the sun are parallel. On a grid of ground points their origins are separable in row and
column, as camera rays' directions are, so the same intersection routine serves, over each primitive's own shadow
only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.frame import Float64Array
from hilda_cache.drives.synthetic.noise import Array, noise
from hilda_cache.drives.synthetic.primitives import Primitives, intersect

CELL_M = 0.125
_BLUR_M = 0.12  # the edge is dithered over this width, like a penumbra


@dataclass(frozen=True, slots=True, eq=False)
class Shadow:
    """A map of shadowed ground; outside it nothing is in shadow."""

    x_m: float
    y_m: float  # world position of cell (0, 0)'s centre
    dark: NDArray[np.bool_]  # (rows along y, columns along x)

    def covers(self, x_m: Array, y_m: Array) -> NDArray[np.bool_]:
        """Whether ground points (world) lie in shadow; shaped like `x_m`."""
        column = ((x_m - self.x_m + _BLUR_M * noise(x_m, y_m, 60)) * (1 / CELL_M)).astype(np.int32)
        row = ((y_m - self.y_m + _BLUR_M * noise(y_m, x_m, 60)) * (1 / CELL_M)).astype(np.int32)
        height, width = self.dark.shape
        inside: NDArray[np.bool_] = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        return inside & self.dark[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]

    def with_more(self, primitives: Primitives, towards_sun: Float64Array) -> Shadow:
        """This map and the shadows of further primitives; `towards_sun` is a (3,) unit vector, world."""
        dark = self.dark.copy()
        unit_from_world = primitives.unit_from_world()
        corners = primitives.corners_m()
        drop = corners[..., 2:] / towards_sun[2]
        foot = (corners - drop * towards_sun)[..., :2] - (self.x_m, self.y_m)
        start = np.clip(np.floor(foot.min(axis=1) / CELL_M), 0, dark.shape[::-1]).astype(int)
        stop = np.clip(np.ceil(foot.max(axis=1) / CELL_M) + 1, 0, dark.shape[::-1]).astype(int)
        for index in np.flatnonzero((start < stop).all(axis=1)):
            rows, columns = slice(start[index, 1], stop[index, 1]), slice(start[index, 0], stop[index, 0])
            linear = unit_from_world[index]
            x = self.x_m + CELL_M * np.arange(columns.start, columns.stop) - primitives.centre_m[index, 0]
            y = self.y_m + CELL_M * np.arange(rows.start, rows.stop) - primitives.centre_m[index, 1]
            fixed = -primitives.centre_m[index, 2] * linear[:, 2]
            origin = [
                (x * linear[axis, 0]).astype(np.float32)
                + (y * linear[axis, 1] + fixed[axis]).astype(np.float32)[:, None]
                for axis in range(3)
            ]
            direction = (linear @ towards_sun).astype(np.float32)
            dark[rows, columns] |= intersect(int(primitives.shape[index]), origin, list(direction)) < np.inf
        return Shadow(self.x_m, self.y_m, dark)
