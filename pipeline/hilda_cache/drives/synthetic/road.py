"""The road of a synthetic scene, and the ground around it.

Road coordinates (s, l): s metres along the centre line, l metres to its left. The centre line is a straight or
an arc of a circle, so both directions of the change of coordinates are closed expressions. The ground is two
horizontal planes: the carriageway at z = 0 and everything else one kerb higher.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilda_cache.drives.frame import Float64Array
from hilda_cache.drives.synthetic.categories import INDEX
from hilda_cache.drives.synthetic.noise import Array

BAND_STEP_M = 0.1  # lateral resolution of the ground's bands
STRIPE_WIDTH_M = 0.14
DASH_LENGTH_M = 3.0
DASH_PERIOD_M = 9.0
CROSSWALK_WIDTH_M = 3.2
FOOTWAY_WIDTH_M = 3.0  # pavement along a side street


class Region(IntEnum):
    """Kinds of ground."""

    ROAD = 0
    OTHER = 1
    SIDEWALK = 2
    TERRAIN = 3


REGION_CATEGORY = np.array(
    [
        INDEX["flat.driveable_surface"],
        INDEX["flat.other"],
        INDEX["flat.sidewalk"],
        INDEX["flat.terrain"],
    ],
    np.uint8,
)


@dataclass(frozen=True, slots=True)
class SideStreet:
    """A street that crosses the road at right angles."""

    s_m: float
    half_width_m: float


@dataclass(frozen=True, slots=True)
class Road:
    """The centre line: through (x_m, y_m) at s = 0 with the given heading; curvature is positive to the left."""

    x_m: float
    y_m: float
    heading_rad: float
    curvature_per_m: float = 0.0

    def to_world(self, s_m: ArrayLike, l_m: ArrayLike) -> tuple[Float64Array, Float64Array]:
        """World x and y [m] of road coordinates; shaped as those broadcast."""
        s, left = np.asarray(s_m, np.float64), np.asarray(l_m, np.float64)
        k = self.curvature_per_m
        if k:
            along, across = (1 / k - left) * np.sin(k * s), 1 / k - (1 / k - left) * np.cos(k * s)
        else:
            along, across = s, left
        c, n = np.cos(self.heading_rad), np.sin(self.heading_rad)
        return self.x_m + c * along - n * across, self.y_m + n * along + c * across

    def to_road(self, x_m: Array, y_m: Array) -> tuple[Array, Array]:
        """Road coordinates [m] of world x and y of one shape, in their dtype.

        The inverse of `to_world` within half a circle.
        """
        c, n = np.cos(self.heading_rad), np.sin(self.heading_rad)
        dx, dy = x_m - x_m.dtype.type(self.x_m), y_m - y_m.dtype.type(self.y_m)
        along, across = c * dx + n * dy, c * dy - n * dx
        k = self.curvature_per_m
        if not k:
            return along, across
        return np.arctan2(k * along, 1 - k * across) / k, (1 - np.hypot(k * along, 1 - k * across)) / k

    def heading_at(self, s_m: ArrayLike) -> Float64Array:
        """Direction of the centre line, radians in the world, shaped like `s_m`."""
        heading: Float64Array = self.heading_rad + self.curvature_per_m * np.asarray(s_m, np.float64)
        return heading


@dataclass(frozen=True, slots=True)
class Ground:
    """Which kind of ground lies where, how high, and what is painted on it.

    Attributes:
        road: its centre line.
        bands: (outer edge |l| in metres, kind), from the centre outwards; the last edge is infinite.
        side_streets: crossings, the same road width on both sides.
        stripes_m: lateral positions of painted lines, (l, dashed).
        kerb_m: height of everything that is not carriageway.
    """

    road: Road
    bands: tuple[tuple[float, Region], ...]
    side_streets: tuple[SideStreet, ...]
    stripes_m: tuple[tuple[float, bool], ...]
    kerb_m: float

    @property
    def half_width_m(self) -> float:
        """|l| of the carriageway's edge."""
        return max(edge for edge, region in self.bands if region == Region.ROAD)

    def region(self, x_m: Array, y_m: Array) -> tuple[NDArray[np.uint8], Array, Array]:
        """Kind of ground at world positions.

        Returns:
            The kind (of `Region`), and the road coordinates s and l, each shaped like `x_m`.
        """
        s, left = self.road.to_road(x_m, y_m)
        lookup = self._band_lookup()
        side = np.abs(left)
        cell = np.minimum(side * (1 / BAND_STEP_M), len(lookup) - 1).astype(np.int16)
        kind = lookup[cell]
        for street in self.side_streets:
            offset = np.abs(s - street.s_m)
            footway = (offset < street.half_width_m + FOOTWAY_WIDTH_M) & (kind != Region.ROAD)
            kind = np.where(footway, np.uint8(Region.SIDEWALK), kind)
            kind = np.where(offset < street.half_width_m, np.uint8(Region.ROAD), kind)
        return kind, s, left

    def height_m(self, x_m: Array, y_m: Array) -> Array:
        """Height of the ground at world positions, shaped like `x_m`."""
        raised = self.region(x_m, y_m)[0] != Region.ROAD
        height: Array = np.where(raised, x_m.dtype.type(self.kerb_m), x_m.dtype.type(0))
        return height

    def paint(self, s_m: Array, l_m: Array) -> NDArray[np.bool_]:
        """Where white paint lies, for positions on the carriageway; shaped like `s_m`."""
        painted = np.zeros(s_m.shape, np.bool_)
        dash = (s_m % DASH_PERIOD_M) < DASH_LENGTH_M
        for position, dashed in self.stripes_m:
            line = np.abs(l_m - position) < STRIPE_WIDTH_M / 2
            painted |= line & dash if dashed else line
        bars = (l_m % 1.2) < 0.6
        for street in self.side_streets:
            offset = np.abs(s_m - street.s_m)
            crossing = offset < street.half_width_m + FOOTWAY_WIDTH_M
            painted &= ~crossing
            near = (offset > street.half_width_m) & (offset < street.half_width_m + CROSSWALK_WIDTH_M)
            painted |= near & bars & (np.abs(l_m) < self.half_width_m)
        return painted

    def enter(self, origin_m: Float64Array, direction: tuple[Array, Array, Array], far: float) -> Array:
        """Where rays meet the ground.

        Args:
            origin_m: (3,) above the ground.
            direction: x, y, z of the rays, world.
            far: largest ray parameter; rays that travel further see no ground.

        Returns:
            Ray parameter, infinite where the ray meets no ground.
        """
        dx, dy, dz = direction
        entry = np.full(dz.shape, np.inf, dz.dtype)
        with np.errstate(divide="ignore"):
            low = dz.dtype.type(-origin_m[2]) / dz
        rows = np.nonzero((dz < 0) & (low < far))
        below = low[rows]
        entry[rows] = below
        if not self.kerb_m:
            return entry
        x, y, above = dx[rows], dy[rows], below * dz.dtype.type(1 - self.kerb_m / origin_m[2])
        ox, oy = dz.dtype.type(origin_m[0]), dz.dtype.type(origin_m[1])
        raised_above = self.height_m(ox + above * x, oy + above * y) > 0
        raised_below = self.height_m(ox + below * x, oy + below * y) > 0
        met = np.where(raised_above, above, below)
        # Over the carriageway when at the kerb's height, but not when at the road's: the ray met a kerb between.
        kerb = np.flatnonzero(~raised_above & raised_below)
        outside, inside = above[kerb], below[kerb]
        for _ in range(6):
            middle = (outside + inside) / 2
            within = self.height_m(ox + middle * x[kerb], oy + middle * y[kerb]) > 0
            outside, inside = np.where(within, outside, middle), np.where(within, middle, inside)
        met[kerb] = inside
        entry[rows] = met
        return entry

    def _band_lookup(self) -> NDArray[np.uint8]:
        cells = int(np.ceil(self.bands[-2][0] / BAND_STEP_M)) + 1
        centres = (np.arange(cells) + 0.5) * BAND_STEP_M
        edges = np.array([edge for edge, _ in self.bands])
        kinds = np.array([kind for _, kind in self.bands], np.uint8)
        lookup: NDArray[np.uint8] = kinds[np.searchsorted(edges, centres)]
        return lookup
