"""Casts the rays of a camera or a spinning LiDAR against a world, one primitive at a time.

Both sensors have separable rays: the direction of the ray in row r and column c is `gain[r] * column[c] + row[r]`.
(Camera: K^-1 (u, v, 1) is a term in u plus a term in v. LiDAR: cos(elevation) times a horizontal direction, plus
sin(elevation) upwards.) So a primitive's linear map is applied to H + W vectors, not to H x W, and only rays
within the primitive's bounds are tested at all; nearest primitives come first, so that what they hide is skipped.

Legend: H rows, W columns, P primitives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hilda_cache.drives.frame import Float64Array
from hilda_cache.drives.synthetic.noise import Array
from hilda_cache.drives.synthetic.primitives import Primitives, intersect, unit_normals
from hilda_cache.drives.synthetic.rig import Camera, Lidar
from hilda_cache.drives.synthetic.road import REGION_CATEGORY, Ground, Region

GROUND = -1  # in `Hits.primitive`
NOTHING = -2

_NEAR_M = 0.05

Window = tuple[int, slice, slice]  # primitive, rows, columns


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """What each ray meets first."""

    t: NDArray[np.floating]  # (H, W) ray parameter; infinite where the ray meets nothing
    primitive: NDArray[np.int32]  # (H, W) row in the primitives, or GROUND, or NOTHING


@dataclass(frozen=True, slots=True, eq=False)
class RayGrid:
    """Rays from one point, in world coordinates.

    For cameras directions have unit depth, so the ray parameter is depth along the optical axis; for a LiDAR
    they have unit length, and it is range.
    """

    origin_m: Float64Array  # (3,)
    gain: Float64Array  # (H,)
    row: Float64Array  # (H, 3)
    column: Float64Array  # (W, 3)
    dtype: DTypeLike

    def directions(
        self, linear: Float64Array, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[Array, Array, Array]:
        """x, y, z (each H x W of the window) of all directions after a linear map (3, 3)."""
        gain = self.gain[rows, None].astype(self.dtype)
        row = (self.row[rows] @ linear.T).astype(self.dtype)
        column = (self.column[columns] @ linear.T).astype(self.dtype)
        x, y, z = (gain * column[None, :, axis] + row[:, None, axis] for axis in range(3))
        return x, y, z


def camera_rays(camera: Camera, world_SE3_ego: Float64Array) -> RayGrid:
    """Rays through the pixel centres of an image taken at a pose, (4, 4)."""
    world_SE3_cam = world_SE3_ego @ camera.ego_SE3_cam
    back = world_SE3_cam[:3, :3] @ np.linalg.inv(camera.intrinsics)
    u = np.arange(camera.width_px, dtype=np.float64)[:, None] * back[:, 0]
    v = np.arange(camera.height_px, dtype=np.float64)[:, None] * back[:, 1] + back[:, 2]
    return RayGrid(world_SE3_cam[:3, 3], np.ones(camera.height_px), v, u, np.float32)


def lidar_rays(lidar: Lidar, world_SE3_ego: Float64Array) -> RayGrid:
    """Rays of one turn at a pose, (4, 4): rings ascending, columns clockwise from above, as nuScenes' LiDAR turns."""
    world_SE3_lidar = world_SE3_ego @ lidar.ego_SE3_lidar
    azimuth = -2 * np.pi * (np.arange(lidar.azimuth_steps) + 0.5) / lidar.azimuth_steps
    flat = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros_like(azimuth)], axis=1)
    up = np.sin(lidar.elevations_rad)[:, None] * np.array([0.0, 0.0, 1.0])
    rotation = world_SE3_lidar[:3, :3]
    return RayGrid(world_SE3_lidar[:3, 3], np.cos(lidar.elevations_rad), up @ rotation.T, flat @ rotation.T, np.float64)


def camera_windows(camera: Camera, world_SE3_ego: Float64Array, primitives: Primitives) -> Iterator[Window]:
    """Primitives that an image taken at a pose, (4, 4), may show, nearest first, with the pixels their boxes cover."""
    cam_SE3_world = np.linalg.inv(world_SE3_ego @ camera.ego_SE3_cam)
    corners = primitives.corners_m() @ cam_SE3_world[:3, :3].T + cam_SE3_world[:3, 3]  # (P, 8, 3)
    depth = corners[..., 2]
    nearest = depth.min(axis=1)
    straddling = np.flatnonzero((nearest < _NEAR_M) & (depth.max(axis=1) > _NEAR_M))
    with np.errstate(divide="ignore", invalid="ignore"):
        uv = corners @ camera.intrinsics.T
        uv = np.where(depth[..., None] > _NEAR_M, uv[..., :2] / uv[..., 2:], np.nan)
    low, high = np.full((len(primitives), 2), np.inf), np.full((len(primitives), 2), -np.inf)
    whole = np.isfinite(uv).all(axis=(1, 2))
    low[whole], high[whole] = uv[whole].min(axis=1), uv[whole].max(axis=1)
    for index in straddling:
        low[index], high[index] = _clipped_bounds(corners[index], camera.intrinsics)
    size = np.array([camera.width_px, camera.height_px])
    start = np.clip(np.floor(low), 0, size).astype(int)
    stop = np.clip(np.ceil(high) + 1, 0, size).astype(int)
    seen = np.flatnonzero((start < stop).all(axis=1))
    for index in seen[np.argsort(nearest[seen], kind="stable")]:
        yield (
            int(index),
            slice(start[index, 1], stop[index, 1]),
            slice(start[index, 0], stop[index, 0]),
        )


def _clipped_bounds(corners: Float64Array, intrinsics: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Least and largest pixel of the part of a box before the near plane; corners as `Primitives.corners_m`."""
    points = [corner for corner in corners if corner[2] >= _NEAR_M]
    for axis in range(3):
        for first in range(8):
            a, b = corners[first], corners[first | 1 << axis]
            if (a[2] < _NEAR_M) != (b[2] < _NEAR_M):
                points.append(a + (b - a) * (_NEAR_M - a[2]) / (b[2] - a[2]))
    uvw = np.array(points) @ intrinsics.T
    uv: Float64Array = uvw[:, :2] / uvw[:, 2:]
    return uv.min(axis=0), uv.max(axis=0)


def lidar_windows(lidar: Lidar, world_SE3_ego: Float64Array, primitives: Primitives) -> Iterator[Window]:
    """Primitives within range of a pose, (4, 4), nearest first, with the rays that may meet their bounding spheres."""
    lidar_SE3_world = np.linalg.inv(world_SE3_ego @ lidar.ego_SE3_lidar)
    centre = primitives.centre_m @ lidar_SE3_world[:3, :3].T + lidar_SE3_world[:3, 3]
    radius = np.linalg.norm(primitives.half_m, axis=1)
    flat, distance = np.hypot(centre[:, 0], centre[:, 1]), np.linalg.norm(centre, axis=1)
    spread = np.where(radius < flat, np.arcsin(np.minimum(radius / np.maximum(flat, 1e-9), 1)), np.pi)
    tilt = np.where(radius < distance, np.arcsin(np.minimum(radius / np.maximum(distance, 1e-9), 1)), np.pi)
    elevation = np.arctan2(centre[:, 2], flat)
    first_row = np.searchsorted(lidar.elevations_rad, elevation - tilt)
    last_row = np.searchsorted(lidar.elevations_rad, elevation + tilt)
    per_rad = lidar.azimuth_steps / (2 * np.pi)
    middle = (-np.arctan2(centre[:, 1], centre[:, 0]) % (2 * np.pi)) * per_rad - 0.5
    first = np.floor(middle - spread * per_rad).astype(int)
    last = np.minimum(np.ceil(middle + spread * per_rad).astype(int) + 1, first + lidar.azimuth_steps)
    in_range = np.flatnonzero((first_row < last_row) & (distance - radius < lidar.max_range_m))
    for index in in_range[np.argsort((distance - radius)[in_range], kind="stable")]:
        rows = slice(first_row[index], last_row[index])
        for turn in (-lidar.azimuth_steps, 0, lidar.azimuth_steps):
            columns = slice(max(first[index] + turn, 0), min(last[index] + turn, lidar.azimuth_steps))
            if columns.start < columns.stop:
                yield int(index), rows, columns


def cast(grid: RayGrid, primitives: Primitives, windows: Iterator[Window], ground: Ground, far: float) -> Hits:
    """Find what every ray meets first.

    Args:
        grid: the rays.
        primitives: the world's, at the time of the rays.
        windows: which rays may meet which primitive, nearest primitive first.
        ground: the world's.
        far: rays see the ground up to this ray parameter.
    """
    t = ground.enter(grid.origin_m, grid.directions(np.eye(3)), far)
    met = np.where(np.isfinite(t), np.int32(GROUND), np.int32(NOTHING))
    unit_from_world = primitives.unit_from_world()
    offset = grid.origin_m - primitives.centre_m
    origins = np.einsum("pij,pj->pi", unit_from_world, offset).astype(grid.dtype)
    reach = np.linalg.norm(primitives.half_m, axis=1)
    # A direction is nowhere longer than in a corner of the grid: no hit can be nearer than the distance over that.
    corners = grid.gain[[0, -1], None, None] * grid.column[[0, -1]] + grid.row[[0, -1], None]
    longest = float(np.linalg.norm(corners, axis=-1).max())
    nearest = (np.linalg.norm(offset, axis=1) - reach) / longest
    for index, rows, columns in windows:
        behind = t[rows, columns]
        if nearest[index] > behind.max():
            continue
        directions = grid.directions(unit_from_world[index], rows, columns)
        entry = intersect(int(primitives.shape[index]), origins[index], directions)
        closer = (entry > 0) & (entry < behind)
        np.copyto(behind, entry, where=closer)
        met[rows, columns][closer] = index
    return Hits(t, met)


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """M points on the surfaces of primitives."""

    local_m: NDArray[np.floating]  # (3, M) from the primitive's centre, along its own axes
    half_m: NDArray[np.floating]  # (3, M) half extents of the primitive
    normal: NDArray[np.floating]  # (3, M) outward, along the primitive's own axes
    outward: NDArray[np.floating]  # (3, M) the same in the world
    owner: NDArray[np.int32]  # (M,) row of the primitive
    t: NDArray[np.floating]  # (M,) ray parameter


def surface_at(
    grid: RayGrid, direction: NDArray[np.floating], hits: Hits, rays: NDArray[np.intp], primitives: Primitives
) -> Surface:
    """Where rays meet primitives.

    Args:
        grid: the rays.
        direction: (3, H * W) all its directions, world.
        hits: what they meet.
        rays: (M,) flat indices of rays that meet a primitive.
        primitives: those that `hits` counts.
    """
    owner, t = hits.primitive.ravel()[rays], hits.t.ravel()[rays]
    unit_from_world = primitives.unit_from_world()
    origins = np.einsum("pij,pj->pi", unit_from_world, grid.origin_m - primitives.centre_m).astype(grid.dtype)
    linear, axes = unit_from_world.astype(grid.dtype), primitives.axes.astype(grid.dtype)
    half = primitives.half_m.astype(grid.dtype)[owner].T
    unit = np.einsum("mij,jm->im", linear[owner], direction[:, rays]) * t + origins[owner].T
    normal = unit_normals(primitives.shape[owner], unit) / half
    normal /= np.sqrt((normal * normal).sum(axis=0))
    return Surface(unit * half, half, normal, np.einsum("mij,jm->im", axes[owner], normal), owner, t)


def categories_of(grid: RayGrid, hits: Hits, primitives: Primitives, ground: Ground) -> NDArray[np.uint8]:
    """Lidarseg index of what every ray meets, shaped like the grid; 0 where it meets nothing."""
    category = np.zeros(hits.t.shape, np.uint8)
    solid = hits.primitive >= 0
    category[solid] = primitives.category[hits.primitive[solid]]
    flat = np.nonzero(hits.primitive == GROUND)
    x, y, z = (
        origin + axis[flat] * hits.t[flat]
        for origin, axis in zip(grid.origin_m, grid.directions(np.eye(3)), strict=True)
    )
    kind = ground.region(x, y)[0]
    # The face of a kerb belongs to what it holds up, although it stands on the carriageway's edge.
    kind[(kind == Region.ROAD) & (z > 0.002)] = Region.SIDEWALK
    category[flat] = REGION_CATEGORY[kind]
    return category
