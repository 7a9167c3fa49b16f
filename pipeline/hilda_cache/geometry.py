"""Which LiDAR point is seen at which pixel of which camera.

A point goes the whole way round, because the vehicle moves between a sweep and an image:

    LiDAR -> ego at the sweep -> world -> ego at the image -> camera -> pixel

The four rigid changes are composed to one matrix per camera in float64, then applied once. Sums are written out term
by term rather than left to a BLAS, whose order of addition depends on the machine and on how many points there are:
the same sweep gives the same bytes everywhere, whatever else is projected with it.

Nothing here opens an image. docs/design-notes/0003-ground-and-occlusion.md has the reasons for the occlusion test
and what it was measured on.

Legend: N points, M samples of surfaces, P pairs, n of one camera.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.frame import CameraView, Float64Array, FrameInfo
from hilda_cache.drives.transforms import inverse_se3
from hilda_schema.content import Pairs

IntArray = NDArray[np.intp]

MIN_DEPTH_M = 1.0

COLUMN_DEG = 0.35  # azimuth within which points lie one above the other; spinning scanners step by 0.1 to 0.33
LINK_DEG = (0.06, 3.0)  # elevation between neighbours: more than jitter within a ring, less than two missing rings
INCIDENCE_DEG = 5.0  # a link seen flatter runs along the ground, or across the gap between two objects
SAMPLE_DEG = 0.2  # elevation between samples of a link
CELL_DEG = 0.25  # of the depth buffer
CLOSING_CELLS = 2  # a gap of so many cells between two nearer columns is closed
MARGIN_M, MARGIN_SHARE = 0.5, 0.1

OCCLUSION = (
    f"linked-depth-buffer: points within {COLUMN_DEG} deg of azimuth and {LINK_DEG[0]}..{LINK_DEG[1]} deg of elevation "
    f"of each other are linked where seen at {INCIDENCE_DEG} deg or steeper; links sampled every {SAMPLE_DEG} deg into "
    f"cells of {CELL_DEG} deg, closed sideways over {CLOSING_CELLS} cells; hidden if a cell is nearer by more than "
    f"max({MARGIN_M} m, {MARGIN_SHARE:.0%} of the depth)"
)
"""The rule behind `pairs/visible`, with its parameters, as the manifest states it."""


def project(points_xyz_m: NDArray[np.floating], frame: FrameInfo) -> Pairs:
    """Project a sweep on all cameras of its frame.

    A pair needs depth > `MIN_DEPTH_M` and a pixel inside the image, -0.5 <= u < width - 0.5 and likewise v; pixel
    centres are at integers. Every camera that sees a point makes a pair of its own. `visible` is False where a nearer
    surface of the same sweep hides the point from the camera (rule: `OCCLUSION`).

    Args:
        points_xyz_m: (N, 3) finite, LiDAR frame.
        frame: poses and cameras.

    Returns:
        Pairs, sorted by camera, then by point; `camera` is the position in `frame.cameras`.
    """
    xyz = np.asarray(points_xyz_m, np.float64).reshape(-1, 3).T
    links = _link(xyz)
    parts = [
        Pairs(
            np.zeros(0, np.uint32),
            np.zeros(0, np.uint8),
            np.zeros((0, 2)),
            np.zeros(0, np.float32),
            np.zeros(0, np.bool_),
        )
    ]
    for number, view in enumerate(frame.cameras):
        cam_from_lidar = cam_SE3_lidar(frame, view)
        seen = _see(xyz, cam_from_lidar, view)
        surfaces = _see(links.sample(xyz, seen), cam_from_lidar, view)
        parts.append(
            Pairs(
                point=seen.row.astype(np.uint32),
                camera=np.full(len(seen.row), number, np.uint8),
                uv_px=np.column_stack([seen.u, seen.v]),
                depth_m=seen.depth_m.astype(np.float32),
                visible=~_hidden(seen, surfaces, view),
            )
        )
    return Pairs(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Pairs)))


def cam_SE3_lidar(frame: FrameInfo, view: CameraView) -> Float64Array:
    """(4, 4): LiDAR at the sweep's time stamp to camera at the image's, through the world both share."""
    camera_from_world = view.cam_SE3_ego @ inverse_se3(view.world_SE3_ego)
    matrix: Float64Array = camera_from_world @ frame.world_SE3_lidar
    return matrix


def distort(x: Float64Array, y: Float64Array, distortion: tuple[float, ...]) -> tuple[Float64Array, Float64Array]:
    """Apply the Brown-Conrady lens model with OpenCV's five coefficients.

        x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6) + 2 p1 x y + p2 (r^2 + 2 x^2),    r^2 = x^2 + y^2
        y' = y (1 + k1 r^2 + k2 r^4 + k3 r^6) + p1 (r^2 + 2 y^2) + 2 p2 x y

    Args:
        x: (n,) ideal image coordinate X / Z.
        y: (n,) ideal image coordinate Y / Z.
        distortion: (k1, k2, p1, p2, k3).

    Returns:
        x' and y', (n,) each.
    """
    k1, k2, p1, p2, k3 = distortion
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def monotone_radius(distortion: tuple[float, ...]) -> float:
    """Radius, in ideal image coordinates, up to which the lens model moves points outwards as they go outwards.

    Beyond it the polynomial, fitted within the image, turns back and would fold far points into the picture. It is
    the smallest positive root of d/dr [r (1 + k1 r^2 + k2 r^4 + k3 r^6)]; infinite where there is none.
    """
    k1, k2, _, _, k3 = distortion
    # in 1 / r^2 the leading coefficient is 1 whatever the lens, and the smallest radius the largest root
    roots = np.roots([1.0, 3 * k1, 5 * k2, 7 * k3])
    real = roots.real[(np.abs(roots.imag) < 1e-9 * np.abs(roots)) & (roots.real > 0)]
    return float(1 / np.sqrt(real.max())) if len(real) else np.inf


@dataclass(frozen=True, slots=True, eq=False)
class _Pixels:
    """Points inside one camera's image, in their own order."""

    row: IntArray  # (n,)
    u: Float64Array  # (n,) pixels
    v: Float64Array  # (n,) pixels
    depth_m: Float64Array  # (n,)


def _see(xyz: Float64Array, cam_from_lidar: Float64Array, view: CameraView) -> _Pixels:
    """Project (3, N) points in the LiDAR frame on one camera."""
    to_x, to_y, to_z, _ = cam_from_lidar
    depth_m = _affine(to_z, xyz)
    row = np.flatnonzero(depth_m > MIN_DEPTH_M)
    depth_m, ahead = depth_m[row], xyz[:, row]
    x, y = _affine(to_x, ahead) / depth_m, _affine(to_y, ahead) / depth_m
    inside = np.ones(len(row), np.bool_)
    if view.distortion:
        inside = x * x + y * y < monotone_radius(view.distortion) ** 2
        x, y = distort(np.where(inside, x, 0.0), np.where(inside, y, 0.0), view.distortion)
    K = view.intrinsics
    u, v = K[0, 0] * x + K[0, 1] * y + K[0, 2], K[1, 1] * y + K[1, 2]
    inside &= (u >= -0.5) & (u < view.width_px - 0.5) & (v >= -0.5) & (v < view.height_px - 0.5)
    return _Pixels(row[inside], u[inside], v[inside], depth_m[inside])


def _affine(row: Float64Array, xyz: Float64Array) -> Float64Array:
    """(4,) row of a transform times (3, N) points."""
    product: Float64Array = row[0] * xyz[0] + row[1] * xyz[1] + row[2] * xyz[2] + row[3]
    return product


@dataclass(frozen=True, slots=True, eq=False)
class _Links:
    """Neighbouring points, one above the other, between which the sensor saw a surface."""

    lower: IntArray  # (L,) rows of points
    upper: IntArray  # (L,)
    samples: IntArray  # (L,) how many points make the link dense

    def sample(self, xyz: Float64Array, seen: _Pixels) -> Float64Array:
        """(3, N) points -> (3, M) points on the links that touch the seen ones, ends included."""
        in_view = np.zeros(xyz.shape[1], np.bool_)
        in_view[seen.row] = True
        chosen = in_view[self.lower] | in_view[self.upper]
        lower, upper, counts = xyz[:, self.lower[chosen]], xyz[:, self.upper[chosen]], self.samples[chosen]
        step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # 0..count-1 in each link
        rise = (upper - lower) / (counts - 1)
        points: Float64Array = np.repeat(lower, counts, axis=1) + np.repeat(rise, counts, axis=1) * step
        return points


def _link(xyz: Float64Array) -> _Links:
    """Link each of (3, N) points to its neighbour above in the same narrow column.

    A sweep is dense around the sensor and sparse upwards: a depth buffer fine enough to keep the outline of a car
    is full of holes between two rings. What two linked points bound is a surface that the sensor itself saw, unless
    the link is seen almost end-on: then it runs along the ground, which hides nothing, or from the edge of an
    object to what is behind it, where there is air.
    """
    range_m = np.sqrt(xyz[0] ** 2 + xyz[1] ** 2 + xyz[2] ** 2)
    azimuth = np.degrees(np.arctan2(xyz[1], xyz[0]))
    elevation = np.degrees(np.arctan2(xyz[2], np.sqrt(xyz[0] ** 2 + xyz[1] ** 2)))
    column = np.floor(azimuth / COLUMN_DEG)
    # one key, by column, then elevation, then azimuth: the result must not depend on the order of points
    order = np.argsort(1e3 * column + elevation + 1e-9 * azimuth)
    rise = np.diff(elevation[order])
    near = np.flatnonzero((np.diff(column[order]) == 0) & (rise >= LINK_DEG[0]) & (rise <= LINK_DEG[1]))
    lower, upper, rise = order[near], order[near + 1], rise[near]
    # angle between link and ray in their upright plane: a step to the side, within the column, must not raise it
    across_m, along_m = range_m[lower] * np.radians(rise), np.abs(range_m[upper] - range_m[lower])
    faces = across_m >= np.tan(np.radians(INCIDENCE_DEG)) * along_m
    samples = 1 + np.ceil(rise[faces] / SAMPLE_DEG).astype(np.intp)
    return _Links(lower[faces], upper[faces], samples)


def _hidden(pixels: _Pixels, samples: _Pixels, view: CameraView) -> NDArray[np.bool_]:
    """(n,) True where samples of surfaces lie clearly nearer in the same cell of a depth buffer."""
    cell_px = np.radians(CELL_DEG) * view.intrinsics[0, 0]
    across, down = int(view.width_px / cell_px) + 1, int(view.height_px / cell_px) + 1

    def cell(seen: _Pixels) -> IntArray:
        row, column = ((seen.v + 0.5) / cell_px).astype(np.intp), ((seen.u + 0.5) / cell_px).astype(np.intp)
        flat: IntArray = row * across + column
        return flat

    nearest_m = np.full(down * across, np.inf)
    np.minimum.at(nearest_m, cell(samples), samples.depth_m)
    nearest_m = _close_sideways(nearest_m.reshape(down, across)).ravel()
    margin_m = np.maximum(MARGIN_M, MARGIN_SHARE * pixels.depth_m)
    hidden: NDArray[np.bool_] = nearest_m[cell(pixels)] < pixels.depth_m - margin_m
    return hidden


def _close_sideways(depth_m: Float64Array) -> Float64Array:
    """Give a cell between two nearer columns the farther of their depths."""
    padded = np.pad(depth_m, ((0, 0), (CLOSING_CELLS, CLOSING_CELLS)), constant_values=np.inf)
    width = depth_m.shape[1]
    windows = [padded[:, start : start + width] for start in range(2 * CLOSING_CELLS + 1)]
    left = np.minimum.reduce(windows[:CLOSING_CELLS])
    right = np.minimum.reduce(windows[CLOSING_CELLS + 1 :])
    return np.minimum(depth_m, np.maximum(left, right))
