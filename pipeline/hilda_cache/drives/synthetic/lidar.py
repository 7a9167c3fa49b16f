"""The LiDAR of the synthetic rig: one sweep with range noise, lost returns and material-dependent intensity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from hilda_cache.drives.frame import Float64Array
from hilda_cache.drives.synthetic.categories import INDEX
from hilda_cache.drives.synthetic.primitives import Material, Part, Primitives, Shape
from hilda_cache.drives.synthetic.raycast import (
    GROUND,
    Hits,
    RayGrid,
    cast,
    categories_of,
    lidar_rays,
    lidar_windows,
    surface_at,
)
from hilda_cache.drives.synthetic.rig import Lidar
from hilda_cache.drives.synthetic.road import Ground, Region
from hilda_cache.drives.synthetic.world import World

RANGE_NOISE_M = 0.02
_LOST_SHARE = 0.02  # returns that vanish whatever they meet
_FOLIAGE_DEPTH_M = 0.3  # mean depth at which leaves return a pulse

# Intensity at normal incidence on nuScenes' scale of 0 to 255, and its relative spread.
_INTENSITY = {
    Material.FACADE: (28, 0.25),
    Material.PLASTER: (34, 0.2),
    Material.ROOF: (20, 0.25),
    Material.BARK: (18, 0.3),
    Material.LEAF: (14, 0.6),
    Material.METAL: (40, 0.4),
    Material.SIGN: (190, 0.2),
    Material.CAR_PAINT: (45, 0.5),
    Material.CABIN: (6, 0.6),
    Material.COACH: (40, 0.4),
    Material.CARGO: (50, 0.3),
    Material.TYRE: (4, 0.3),
    Material.CLOTH: (22, 0.5),
    Material.SKIN: (30, 0.2),
    Material.STRIPES: (110, 0.3),
    Material.CONE: (85, 0.3),
    Material.CONCRETE: (26, 0.15),
    Material.WOOD: (20, 0.25),
}
_MATERIAL_INTENSITY = np.array([_INTENSITY[material] for material in Material])  # (materials, 2)
_GROUND_INTENSITY = {
    Region.ROAD: (9, 0.25),
    Region.OTHER: (16, 0.25),
    Region.SIDEWALK: (20, 0.2),
    Region.TERRAIN: (13, 0.45),
}
_REGION_INTENSITY = np.array([_GROUND_INTENSITY[region] for region in Region])  # (regions, 2)
_PAINT_INTENSITY = 75.0

# The recording vehicle's own roof, which the lowest beams meet as they do in real sweeps.
_EGO_ROOF = Part(Shape.BOX, (0.55, 0.0, 1.47), (1.25, 0.6, 0.05), Material.CAR_PAINT, (0.9, 0.9, 0.9))


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """One turn of the LiDAR; N returns, column by column as the sensor turns, rings ascending in a column."""

    xyz_m: NDArray[np.float32]  # (N, 3) LiDAR frame
    intensity: NDArray[np.float32]  # (N,) whole numbers from 0 to 255
    ring: NDArray[np.uint8]  # (N,)
    category: NDArray[np.uint8]  # (N,) lidarseg index
    instance: NDArray[np.int32]  # (N,) index of the agent; -1 for everything else


def sweep(world: World, lidar: Lidar, t_s: float, rng: Generator) -> Sweep:
    """Take one sweep at an instant.

    Args:
        world: the scene.
        lidar: the sensor.
        t_s: when.
        rng: source of noise and losses.
    """
    pose = world.world_SE3_ego(t_s)
    roof = Primitives.of([_EGO_ROOF], INDEX["vehicle.ego"]).posed(pose[:3, :3], pose[:3, 3])
    primitives = Primitives.concatenate([world.at(t_s), roof])
    grid = lidar_rays(lidar, pose)
    windows = lidar_windows(lidar, pose, primitives)
    hits = cast(grid, primitives, windows, world.ground, lidar.max_range_m)
    strength, leafy = _strength(grid, hits, primitives, world.ground, rng)
    noise_m = rng.normal(0, RANGE_NOISE_M, hits.t.shape) + leafy * rng.exponential(_FOLIAGE_DEPTH_M, hits.t.shape)
    # Far and dark surfaces lose returns first.
    lost = _LOST_SHARE + 0.5 * np.minimum(hits.t / lidar.max_range_m, 1) ** 2 * np.exp(-strength / 12)
    kept = (hits.t < lidar.max_range_m) & (rng.random(hits.t.shape) > lost)
    column, ring = np.nonzero(kept.T)
    at = ring, column
    met = hits.primitive[at]
    world_R_lidar = pose[:3, :3] @ lidar.ego_SE3_lidar[:3, :3]
    direction = np.stack(grid.directions(world_R_lidar.T), axis=-1)[at]
    return Sweep(
        (direction * (hits.t[at] + noise_m[at])[:, None]).astype(np.float32),
        strength[at].astype(np.float32),
        ring.astype(np.uint8),
        categories_of(grid, hits, primitives, world.ground)[at],
        np.where(met >= 0, primitives.instance[met], np.int32(-1)),
    )


def _strength(
    grid: RayGrid, hits: Hits, primitives: Primitives, ground: Ground, rng: Generator
) -> tuple[Float64Array, NDArray[np.bool_]]:
    """Intensity (H, W) of every ray's return, and where the return comes from leaves."""
    direction = np.stack(grid.directions(np.eye(3))).reshape(3, -1)
    mean, spread, cosine = np.zeros((3, hits.t.size))
    leafy = np.zeros(hits.t.size, np.bool_)
    flat = np.flatnonzero(hits.primitive == GROUND)
    x, y, _ = grid.origin_m[:, None] + direction[:, flat] * hits.t.ravel()[flat]
    kind, s, left = ground.region(x, y)
    mean[flat], spread[flat] = _REGION_INTENSITY[kind].T
    mean[flat] = np.where(ground.paint(s, left) & (kind == Region.ROAD), _PAINT_INTENSITY, mean[flat])
    cosine[flat] = -direction[2, flat]
    solid = np.flatnonzero(hits.primitive >= 0)
    surface = surface_at(grid, direction, hits, solid, primitives)
    material = primitives.material[surface.owner]
    mean[solid], spread[solid] = _MATERIAL_INTENSITY[material].T
    cosine[solid] = -(surface.outward * direction[:, solid]).sum(axis=0)
    leafy[solid] = material == Material.LEAF
    scatter = np.exp(spread * rng.standard_normal(hits.t.size))
    # Rough surfaces send light back at any angle, so the fall-off is gentler than Lambert's.
    strength = np.clip(mean * scatter * np.sqrt(np.clip(cosine, 0.02, 1)), 0, 255)
    return np.rint(strength).reshape(hits.t.shape), leafy.reshape(hits.t.shape)
