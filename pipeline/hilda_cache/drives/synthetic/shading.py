"""Colours an image: sun, sky light, shadows and haze on what the rays have met.

Shading is deferred: rays are cast first, then every pixel is coloured once, all pixels of a material together.

Legend: M pixels of one kind.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.synthetic.materials import TEXTURE, Patch, blend, ground_albedo, rgb
from hilda_cache.drives.synthetic.noise import Array, Float32Array, noise
from hilda_cache.drives.synthetic.primitives import Material, Primitives
from hilda_cache.drives.synthetic.raycast import GROUND, NOTHING, Hits, RayGrid, surface_at
from hilda_cache.drives.synthetic.road import Ground
from hilda_cache.drives.synthetic.shadow import Shadow
from hilda_cache.drives.synthetic.world import Light


def shade(
    grid: RayGrid, hits: Hits, primitives: Primitives, ground: Ground, light: Light, shadow: Shadow
) -> NDArray[np.uint8]:
    """Colour an image.

    Args:
        grid: the camera's rays.
        hits: what they meet.
        primitives: those that `hits` counts.
        ground: the world's.
        light: the world's.
        shadow: of the primitives, on the ground.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    direction = np.stack(grid.directions(np.eye(3))).reshape(3, -1)
    t, met = hits.t.ravel(), hits.primitive.ravel()
    length = np.sqrt((direction * direction).sum(axis=0))
    image = np.empty((3, met.size), np.float32)
    sky = np.flatnonzero(met == NOTHING)
    image[:, sky] = _sky(light, direction[:, sky] / length[sky])
    flat = np.flatnonzero(met == GROUND)
    x, y, z = grid.origin_m.astype(np.float32)[:, None] + direction[:, flat] * t[flat]
    lit = ~shadow.covers(x, y) * np.float32(light.towards_sun[2])
    image[:, flat] = ground_albedo(ground, x, y, z, t[flat]) * (rgb(*light.ambient) + rgb(*light.sun) * lit)
    _shade_solids(image, grid, direction, hits, primitives, light)
    haze = np.exp(np.where(np.isfinite(t), t * length, 0) * np.float32(-1 / light.haze_m))
    image = blend(rgb(*light.horizon), image, haze)
    colour = np.clip(image.T * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(colour).reshape(*hits.t.shape, 3)


def _shade_solids(
    image: Float32Array, grid: RayGrid, direction: Float32Array, hits: Hits, primitives: Primitives, light: Light
) -> None:
    """Colour the pixels of `image` (3, H * W) that show primitives, one material after the other."""
    met = hits.primitive.ravel()
    solid = np.flatnonzero(met >= 0)
    solid = solid[np.argsort(primitives.material[met[solid]], kind="stable")]
    starts = np.searchsorted(primitives.material[met[solid]], np.arange(len(Material) + 1))
    surface = surface_at(grid, direction, hits, solid, primitives)
    colour = primitives.colour[surface.owner].T
    sky = rgb(*light.ambient) * (0.72 + 0.28 * surface.outward[2])
    sun = rgb(*light.sun) * np.clip(np.einsum("i,im->m", light.towards_sun.astype(np.float32), surface.outward), 0, 1)
    albedo = np.empty_like(colour)
    for kind, texture in TEXTURE.items():
        if starts[kind] < starts[kind + 1]:
            m = slice(starts[kind], starts[kind + 1])
            albedo[:, m] = texture(
                Patch(
                    surface.local_m[:, m],
                    surface.half_m[:, m],
                    surface.normal[:, m],
                    colour[:, m],
                    surface.owner[m],
                    surface.t[m],
                )
            )
    image[:, solid] = albedo * (sky + sun)


def _sky(light: Light, direction: Array) -> Array:
    """Colour (3, M) of the sky in unit directions (3, M): a gradient, clouds, a glow around the sun."""
    x, y, z = direction
    up = np.clip(z, 0, 1)
    colour = blend(rgb(*light.horizon), rgb(*light.zenith), np.sqrt(up))
    height = 1 / (up + 0.12)
    cover = noise(x * height, y * height, 26) * 0.7 + noise(y * height, x * height, 70) * 0.3
    share = np.clip((cover - 1 + light.clouds) * 3, 0, 1) * np.clip(up * 6, 0, 1)
    colour = blend(colour, rgb(0.93, 0.93, 0.94), 0.8 * share)
    glow: Array = np.clip(np.einsum("i,im->m", light.towards_sun.astype(np.float32), direction), 0, 1)
    for _ in range(5):  # to the 32nd power; `**` is ten times slower
        glow *= glow
    return colour + rgb(*light.sun) * (np.float32(0.35) * glow)
