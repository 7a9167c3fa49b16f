"""Which points lie on the ground, found without labels.

Stage two predicts which BEV cells will be occupied once the ground is taken away, and must not learn what a label
told it; so the ground is found here from geometry alone, once, and stored with the points.

The method grows a height map outwards from the vehicle on a polar grid, as line-based segmentation does
(Himmelsbach, von Hundelshausen and Wuensche, "Fast segmentation of 3D point clouds for ground vehicles", IV 2010),
with three differences: the mounting height and tilt of the sensor are estimated, not asked for; every height is
checked against the neighbouring sectors, so that a parked truck does not lift the ground behind it; and a cell in
which something stands keeps only a thin layer, so that tyres and the feet of walls stay objects.
docs/design-notes/0003-ground-and-occlusion.md has the reasons and the measurements.

Legend: N points, S sectors (by azimuth), B rings of the polar grid (by distance).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.intp]

SECTORS = 120
FIRST_RING_M, LAST_RING_M = 1.0, 120.0
RING_WIDTH_M, RING_GROWTH = 0.8, 0.05  # a ring is as wide as the larger of 0.8 m and 5 % of its distance
NEAR_M = (2.5, 20.0)  # where the road is seen well; nearer lie returns from the vehicle itself
STEP_M, STEP_SLOPE, STEP_LIMIT_M = 0.15, 0.05, 0.4  # how far the ground may leave its extrapolation
DROP_STEPS = 2  # downwards twice as far: a sector that took the foot of a wall for ground finds back
SLOPE_LIMIT = 0.3  # against the plane under the vehicle
SLOPE_MEMORY_M = 10.0
NEIGHBOURS, NEIGHBOUR_STEP_M = 3, 0.3
LAYER_M, THIN_LAYER_M, BELOW_M = 0.15, 0.07, 0.25
OBSTACLE_M = (0.3, 2.5)  # a point so high above the ground is something that stands there; higher is overhanging

GROUND = (
    f"polar-growth: {SECTORS} sectors, rings of max({RING_WIDTH_M} m, {RING_GROWTH:.0%}) to {LAST_RING_M:.0f} m; "
    f"plane fitted to the lowest points at {NEAR_M[0]}..{NEAR_M[1]} m; step <= min({STEP_M} m + {STEP_SLOPE:.0%}, "
    f"{STEP_LIMIT_M} m) up, {DROP_STEPS} steps down, slope <= {SLOPE_LIMIT:.0%} over {SLOPE_MEMORY_M:.0f} m, "
    f"+-{NEIGHBOURS} sectors agree within {NEIGHBOUR_STEP_M} m; layer {LAYER_M} m, {THIN_LAYER_M} m below points at "
    f"{OBSTACLE_M[0]}..{OBSTACLE_M[1]} m"
)
"""The rule behind `points/ground`, with its parameters, as the manifest states it."""


def ground_mask(xyz_m: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find the points on roads, pavements, verges: on whatever a vehicle or a pedestrian stands on.

    No sensor height is asked for. A cloud in which hardly anything lies between 2.5 m and 20 m has no ground.
    The result of a point depends on the set of points only, not on their order.

    Args:
        xyz_m: (N, 3) finite points of one sweep, z up, origin above the ground near the sensor.

    Returns:
        (N,) True for ground.
    """
    xyz = np.asarray(xyz_m, np.float64).reshape(-1, 3)
    plane = _plane_below(xyz)
    if plane is None:
        return np.zeros(len(xyz), np.bool_)
    height_m = xyz[:, 2] - (xyz[:, 0] * plane[0] + xyz[:, 1] * plane[1] + plane[2])
    grid = _PolarGrid.of(xyz)
    above_m = height_m - grid.interpolate(_grow(grid, height_m))
    obstacle = np.zeros(grid.cells, np.bool_)
    obstacle[grid.cell[(above_m > OBSTACLE_M[0]) & (above_m < OBSTACLE_M[1])]] = True
    layer_m = np.where(obstacle[grid.cell], THIN_LAYER_M, LAYER_M)
    inside = (grid.range_m >= FIRST_RING_M) & (grid.range_m < LAST_RING_M)
    mask: NDArray[np.bool_] = inside & (above_m < layer_m) & (above_m > -BELOW_M)
    return mask


def _ring_edges_m() -> Float64Array:
    edges = [FIRST_RING_M]
    while edges[-1] < LAST_RING_M:
        edges.append(edges[-1] + max(RING_WIDTH_M, RING_GROWTH * edges[-1]))
    return np.array(edges)


_EDGES_M = _ring_edges_m()
_CENTRES_M = (_EDGES_M[1:] + _EDGES_M[:-1]) / 2


@dataclass(frozen=True, slots=True, eq=False)
class _PolarGrid:
    """Where every point lies in the polar grid; points outside the rings are put into the nearest one."""

    range_m: Float64Array  # (N,) horizontal distance from the sensor
    ring: IntArray  # (N,)
    sector: IntArray  # (N,)

    @classmethod
    def of(cls, xyz: Float64Array) -> _PolarGrid:
        range_m = np.sqrt(xyz[:, 0] ** 2 + xyz[:, 1] ** 2)
        ring = np.clip(np.searchsorted(_EDGES_M, range_m, "right") - 1, 0, len(_CENTRES_M) - 1)
        turn = np.arctan2(xyz[:, 1], xyz[:, 0]) / (2 * np.pi) + 0.5
        return cls(range_m, ring, (turn * SECTORS).astype(np.intp) % SECTORS)

    @property
    def cells(self) -> int:
        return len(_CENTRES_M) * SECTORS

    @property
    def cell(self) -> IntArray:
        """(N,) index into a flattened (B, S) grid."""
        return self.ring * SECTORS + self.sector

    def interpolate(self, ground_m: Float64Array) -> Float64Array:
        """(B, S) heights at ring centres -> (N,) heights under the points, linear in distance."""
        far = np.clip(self.ring + (self.range_m >= _CENTRES_M[self.ring]), 1, len(_CENTRES_M) - 1)
        share = (self.range_m - _CENTRES_M[far - 1]) / (_CENTRES_M[far] - _CENTRES_M[far - 1])
        share = np.clip(share, 0.0, 1.0)
        heights: Float64Array = ground_m[far - 1, self.sector] * (1 - share) + ground_m[far, self.sector] * share
        return heights


def _plane_below(xyz: Float64Array) -> Float64Array | None:
    """Fit z = a x + b y + c to the road around the vehicle; None where too little is seen of it.

    The lowest point of each near cell is either road or the foot of something. Most of the road lies in one thin
    slab even where it is tilted, so the fit starts in the slab with most of these points and is repeated with ever
    smaller tolerance.
    """
    range_m = np.sqrt(xyz[:, 0] ** 2 + xyz[:, 1] ** 2)
    near = xyz[(range_m > NEAR_M[0]) & (range_m < NEAR_M[1])]
    low = _lowest_per_cell(near)
    if len(low) < 10:
        return None
    bins = np.round(low[:, 2] / 0.1).astype(np.intp)
    bins -= bins.min()
    # minlength: np.convolve(mode="same") is as long as the longer of its two inputs
    slab = np.convolve(np.bincount(np.minimum(bins, 1000), minlength=7), np.ones(7), "same").argmax()
    plane = np.array([0.0, 0.0, low[:, 2].min() + 0.1 * slab])
    design = np.column_stack([low[:, :2], np.ones(len(low))])
    for tolerance_m in (1.0, 0.6, 0.4, 0.3, 0.2, 0.2):
        inlier = np.abs(low[:, 2] - design @ plane) < tolerance_m
        if inlier.sum() < 10:
            break
        # a little ridge: points in one direction only leave the tilt across it undetermined
        normal = design[inlier].T @ design[inlier] + np.diag([0.5, 0.5, 0.0])
        plane = np.linalg.solve(normal, design[inlier].T @ low[inlier, 2])
    return plane


def _lowest_per_cell(xyz: Float64Array) -> Float64Array:
    """The lowest point of each cell of 5 degrees by 1 m; which one and in which order depends on no input order."""
    turn = np.arctan2(xyz[:, 1], xyz[:, 0]) / (2 * np.pi) + 0.5
    range_m = np.sqrt(xyz[:, 0] ** 2 + xyz[:, 1] ** 2)
    cell = (turn * 72).astype(np.intp) * 32 + range_m.astype(np.intp)
    lowest = np.full(73 * 32, np.inf)
    np.minimum.at(lowest, cell, xyz[:, 2])
    is_low = xyz[:, 2] == lowest[cell]
    low, cell = xyz[is_low], cell[is_low]
    order = np.lexsort(low.T)
    _, first = np.unique(cell[order], return_index=True)
    points: Float64Array = low[order[first]]
    return points


def _grow(grid: _PolarGrid, height_m: Float64Array) -> Float64Array:
    """Grow the ground outwards, ring by ring.

    In each ring, every sector extrapolates its ground and takes the lowest point within steps of it; what lies lower
    (a reflection) or higher (a roof) is left out. A sector which disagrees with its neighbours, or sees nothing,
    takes their median.

    Args:
        grid: places of the points.
        height_m: (N,) heights over the plane below the vehicle.

    Returns:
        (B, S) ground heights at ring centres over the same plane.
    """
    order = np.argsort(grid.ring.astype(np.int16), kind="stable")
    starts = np.searchsorted(grid.ring[order], np.arange(len(_CENTRES_M) + 1))
    height_m, sector, range_m = height_m[order], grid.sector[order], grid.range_m[order]
    ground_m = np.zeros((len(_CENTRES_M), SECTORS))
    last_m, last_at_m, slope = np.zeros(SECTORS), np.zeros(SECTORS), np.zeros(SECTORS)
    for ring, centre_m in enumerate(_CENTRES_M):
        here = slice(starts[ring], starts[ring + 1])
        gap_m = centre_m - last_at_m
        expected_m = last_m + slope * gap_m
        step_m = np.minimum(STEP_M + STEP_SLOPE * gap_m, STEP_LIMIT_M)
        at = sector[here]
        level_m = height_m[here] - slope[at] * (range_m[here] - centre_m)  # as if the point lay at the centre
        possible = level_m >= (expected_m - DROP_STEPS * step_m)[at]
        low_m = np.full(SECTORS, np.inf)
        np.minimum.at(low_m, at[possible], level_m[possible])
        low_m[low_m > expected_m + step_m] = np.inf
        around_m = _median_around(low_m)
        found = np.isfinite(around_m)
        new_m = np.where(np.abs(low_m - np.where(found, around_m, 0.0)) <= NEIGHBOUR_STEP_M, low_m, around_m)
        new_m = np.where(found, new_m, expected_m)
        change = (new_m - expected_m) / (gap_m + SLOPE_MEMORY_M)
        slope = np.clip(slope + change, -SLOPE_LIMIT, SLOPE_LIMIT)
        last_m, last_at_m = np.where(found, new_m, last_m), np.where(found, centre_m, last_at_m)
        ground_m[ring] = new_m
    return ground_m


def _median_around(values: Float64Array) -> Float64Array:
    """Lower median of the finite values in a circular window of sectors; infinite where there is none."""
    window = np.stack([np.roll(values, shift) for shift in range(-NEIGHBOURS, NEIGHBOURS + 1)])
    window.sort(axis=0)
    middle = np.maximum(np.isfinite(window).sum(axis=0) - 1, 0) // 2
    median: Float64Array = np.take_along_axis(window, middle[np.newaxis], axis=0)[0]
    return median
