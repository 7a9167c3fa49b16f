"""The camera of the synthetic rig: what one image shows, and what is behind every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.synthetic.primitives import Primitives
from hilda_cache.drives.synthetic.raycast import camera_rays, camera_windows, cast, categories_of
from hilda_cache.drives.synthetic.rig import Camera
from hilda_cache.drives.synthetic.shading import shade
from hilda_cache.drives.synthetic.shadow import CELL_M, Shadow
from hilda_cache.drives.synthetic.world import World

_FAR_M = 400.0


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One rendered image with the truth behind it."""

    rgb: NDArray[np.uint8]  # (H, W, 3)
    depth_m: NDArray[np.float32]  # (H, W) along the optical axis; infinite in the sky
    category: NDArray[np.uint8]  # (H, W) lidarseg index; 0 in the sky


def render(world: World, camera: Camera, t_s: float, still_shadow: Shadow) -> Picture:
    """Take an image at a time.

    Args:
        world: the scene.
        camera: which camera.
        t_s: the image's own time; the vehicle and everything else is where it is then.
        still_shadow: shadows of what stays where it is.
    """
    pose = world.world_SE3_ego(t_s)
    moving = world.moving_at(t_s)
    primitives = Primitives.concatenate([world.still, moving])
    grid = camera_rays(camera, pose)
    hits = cast(grid, primitives, camera_windows(camera, pose, primitives), world.ground, _FAR_M)
    shadow = still_shadow.with_more(moving, world.light.towards_sun)
    rgb = shade(grid, hits, primitives, world.ground, world.light, shadow)
    return Picture(rgb, hits.t, categories_of(grid, hits, primitives, world.ground))


def still_shadow(world: World) -> Shadow:
    """Shadows of what stays where it is, over the whole ground of a scene."""
    corners = world.still.corners_m()[..., :2]
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    columns, rows = np.ceil((high - low) / CELL_M).astype(int)
    blank = Shadow(float(low[0]), float(low[1]), np.zeros((rows, columns), np.bool_))
    return blank.with_more(world.still, world.light.towards_sun)
