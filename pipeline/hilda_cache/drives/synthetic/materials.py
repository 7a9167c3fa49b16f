"""What surfaces look like in even light: procedural textures of every material and of the ground.

Textures are anchored to objects and to the world, so they move with what they are painted on. All lengths in
metres, all colours RGB from 0 to 1.

Legend: M pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.synthetic.noise import Array, Float32Array, noise
from hilda_cache.drives.synthetic.primitives import Material
from hilda_cache.drives.synthetic.road import Ground, Region

_WINDOW_M, _STOREY_M = 2.6, 3.2
_GROUND_COLOUR = {
    Region.ROAD: (0.27, 0.27, 0.28),
    Region.OTHER: (0.47, 0.43, 0.40),
    Region.SIDEWALK: (0.56, 0.54, 0.51),
    Region.TERRAIN: (0.29, 0.37, 0.18),
}


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """M pixels of one material, on primitives."""

    local: Array  # (3, M) metres from the primitive's centre, along its own axes
    half: Array  # (3, M) half extents
    normal: Array  # (3, M) along the primitive's own axes
    colour: Array  # (3, M) of the primitive
    number: NDArray[np.int32]  # (M,) of the primitive, for what differs between copies
    distance: Array  # (M,) from the camera

    def wall(self) -> tuple[Array, Array]:
        """Texture coordinates (M,), metres, on upright faces: along the face and up, from its lower left corner."""
        across = np.abs(self.normal[0]) > np.abs(self.normal[1])
        along = np.where(across, self.local[1] + self.half[1], self.local[0] + self.half[0])
        return along, self.local[2] + self.half[2]

    @property
    def upright(self) -> NDArray[np.bool_]:
        """(M,) where the face is a wall rather than a roof or floor."""
        wall: NDArray[np.bool_] = np.abs(self.normal[2]) < 0.5
        return wall


def rgb(red: float, green: float, blue: float) -> Float32Array:
    """(3, 1) colour, ready to broadcast over pixels."""
    return np.array([[red], [green], [blue]], np.float32)


def blend(base: Array, colour: Float32Array, share: Array) -> Array:
    """(3, M) colours: `base` covered with `colour`, each (3, M) or (3, 1), wholly where `share`, (M,), is 1."""
    mixed: Array = base + (colour - base) * share.astype(np.float32)
    return mixed


def _speckled(surface: Patch, contrast: float, cells_per_m: float) -> Array:
    u, v = surface.wall()
    u = np.where(surface.upright, u, surface.local[0] + surface.local[1])
    tone: Array = 1 - contrast / 2 + contrast * noise(u + surface.number, v, cells_per_m)
    return surface.colour * tone


def _facade(surface: Patch) -> Array:
    """Storeys of windows in a wall; the ground floor has shop windows, lit or dark by chance."""
    base = _speckled(surface, 0.22, 9)
    u, v = surface.wall()
    column, row = np.floor(u / _WINDOW_M), np.floor(v / _STOREY_M)
    across, up = u / _WINDOW_M - column, v / _STOREY_M - row
    window = (across > 0.22) & (across < 0.78) & (up > 0.28) & (up < 0.82)
    shop = (row == 0) & (across > 0.06) & (across < 0.94) & (up > 0.12) & (up < 0.8)
    tall = surface.half[2] > 4
    window = np.where((row == 0) & tall, shop, window) & surface.upright
    chance = noise(column * 7 + surface.number * 13, row * 11, 1)
    pane = rgb(0.20, 0.25, 0.31) * np.where(chance < 0.25, 1.4, np.where(chance < 0.5, 0.55, 0.85))
    pane = blend(pane, rgb(0.55, 0.5, 0.42), chance < 0.12)
    frame = surface.upright & ~window & (across > 0.17) & (across < 0.83) & (up > 0.22) & (up < 0.88) & (row > 0)
    base = blend(base, rgb(0.88, 0.87, 0.84), 0.6 * frame)
    facade: Array = np.where(window, pane, base * np.where(surface.upright, 1, 0.6))
    return facade


def _roof(surface: Patch) -> Array:
    """Rows of tiles; the gable ends are plastered."""
    rows = np.abs((surface.local[1] + surface.local[2]) % 0.35 - 0.175) < 0.03
    gable = np.abs(surface.normal[0]) > 0.5
    return blend(_speckled(surface, 0.35, 6) * (1 - 0.3 * rows), rgb(0.72, 0.68, 0.6), gable)


def _leaf(surface: Patch) -> Array:
    x, y, z = surface.local
    clumps = noise(x * 0.9 + y * 0.4 + surface.number, z + y * 0.7, 14)
    leaves = noise(x - y * 0.8, z * 1.1 - y * 0.3 + surface.number, 70)
    near = np.clip(12 / surface.distance, 0, 1)
    under = 0.72 + 0.28 * np.clip(z / surface.half[2], -1, 1)
    tone = (0.95 + 0.75 * clumps + 0.8 * (leaves - 0.5) * near) * under
    warm = np.stack([0.9 + 0.3 * clumps, np.ones_like(clumps), 0.8 + 0.1 * leaves])
    green: Array = surface.colour * (tone * warm)
    return green


def _paint(surface: Patch) -> Array:
    """Car body: darker sills, headlights in front, tail lights behind."""
    x, y, z = surface.local / surface.half
    tone = 0.82 + 0.18 * (z > -0.55) + 0.08 * (surface.normal[2] > 0.5)
    base = surface.colour * tone
    lamp = (np.abs(y) > 0.62) & (z > 0.15) & (z < 0.75)
    base = blend(base, rgb(0.95, 0.93, 0.82), lamp & (surface.normal[0] > 0.5))
    base = blend(base, rgb(0.75, 0.05, 0.04), lamp & (surface.normal[0] < -0.5))
    plate = (np.abs(y) < 0.28) & (z > -0.5) & (z < -0.15) & (np.abs(surface.normal[0]) > 0.5)
    door = (np.abs(np.abs(x) - 0.26) < 0.012) & (np.abs(surface.normal[1]) > 0.5)
    return blend(blend(base, rgb(0.9, 0.9, 0.85), 0.8 * plate), rgb(0.05, 0.05, 0.05), 0.6 * door)


def _cabin(surface: Patch) -> Array:
    """Glass all round between pillars, under a painted roof."""
    x, y, z = surface.local / surface.half
    pillar = np.where(np.abs(surface.normal[0]) > 0.5, np.abs(y) > 0.9, (np.abs(x) > 0.93) | (np.abs(x) < 0.05))
    pillar |= (surface.normal[2] > 0.5) | (z > 0.86)
    shine = 0.8 + 0.5 * np.clip(z, 0, 1)
    cabin: Array = np.where(pillar, surface.colour, rgb(0.10, 0.13, 0.16) * shine)
    return cabin


def _coach(surface: Patch) -> Array:
    """Bus or lorry cab: a strip of windows below the roof, lamps at the ends."""
    u, _ = surface.wall()
    _, y, z = surface.local / surface.half
    strip = (z > 0.0) & (z < 0.72) & surface.upright & ((u % 1.5) > 0.12)
    base = surface.colour * (0.8 + 0.2 * (z > -0.6))
    base = blend(base, rgb(0.09, 0.12, 0.15), strip)
    lamp = (np.abs(y) > 0.7) & (z > -0.75) & (z < -0.5)
    base = blend(base, rgb(0.95, 0.93, 0.82), lamp & (surface.normal[0] > 0.5))
    return blend(base, rgb(0.75, 0.05, 0.04), lamp & (surface.normal[0] < -0.5))


def _cargo(surface: Patch) -> Array:
    u, _ = surface.wall()
    groove: Array = ((u % 0.6) < 0.08) & surface.upright
    return surface.colour * (1 - 0.12 * groove)


def _tyre(surface: Patch) -> Array:
    """Black, with a pale hub in the flat sides."""
    x, y, _ = surface.local
    hub = (x * x + y * y < 0.3 * surface.half[0] ** 2) & ~surface.upright
    return blend(surface.colour, rgb(0.42, 0.42, 0.42), hub)


def _stripes(surface: Patch) -> Array:
    _, y, z = surface.local
    return blend(surface.colour, rgb(0.8, 0.08, 0.06), ((y + z) % 0.5) < 0.25)


def _cone(surface: Patch) -> Array:
    _, _, z = surface.local / surface.half
    return blend(surface.colour, rgb(0.95, 0.95, 0.95), (z > 0.2) & (z < 0.85))


def _sign(surface: Patch) -> Array:
    _, y, z = surface.local / surface.half
    rim = (np.abs(y) > 0.86) | (np.abs(z) > 0.86)
    lines = (np.abs(y) < 0.55) & (np.abs(np.abs(z) - 0.3) < 0.12)
    return blend(surface.colour, rgb(0.95, 0.95, 0.95), np.maximum(rim, lines) & (surface.half[2] > 0.2))


def _wood(surface: Patch) -> Array:
    u, _ = surface.wall()
    gap: Array = (u % 0.16) < 0.02
    return _speckled(surface, 0.4, 5) * (1 - 0.55 * gap)


TEXTURE: dict[Material, Callable[[Patch], Array]] = {
    Material.FACADE: _facade,
    Material.PLASTER: lambda s: _speckled(s, 0.2, 8),
    Material.ROOF: _roof,
    Material.BARK: lambda s: _speckled(s, 0.7, 26),
    Material.LEAF: _leaf,
    Material.METAL: lambda s: s.colour,
    Material.SIGN: _sign,
    Material.CAR_PAINT: _paint,
    Material.CABIN: _cabin,
    Material.COACH: _coach,
    Material.CARGO: _cargo,
    Material.TYRE: _tyre,
    Material.CLOTH: lambda s: _speckled(s, 0.3, 40),
    Material.SKIN: lambda s: s.colour,
    Material.STRIPES: _stripes,
    Material.CONE: _cone,
    Material.CONCRETE: lambda s: _speckled(s, 0.25, 6),
    Material.WOOD: _wood,
}


def ground_albedo(ground: Ground, x: Array, y: Array, z: Array, distance: Array) -> Array:
    """Colour (3, M) of ground points at world positions: asphalt and paint, paving, grass, islands, kerbs."""
    kind, s, left = ground.region(x, y)
    coarse, near = noise(x, y, 1.5), np.clip(15 / distance, 0, 1)
    grain = (noise(y, x, 30) - 0.5) * near
    joint = ((s % 1.2) < 0.05) | ((left % 1.2) < 0.05)
    bare = np.clip(noise(x, y, 0.35) * 3 - 2.1, 0, 1)
    base = np.array([_GROUND_COLOUR[region] for region in Region], np.float32)[kind].T
    tone = np.select(
        [kind == Region.ROAD, kind == Region.TERRAIN, kind == Region.SIDEWALK],
        [
            0.85 + 0.25 * coarse + 0.3 * grain,
            0.55 + 0.6 * coarse + 0.5 * grain,
            (0.88 + 0.18 * coarse + 0.14 * grain) * (1 - 0.25 * joint * near),
        ],
        0.8 + 0.3 * coarse + 0.2 * grain,
    ).astype(np.float32)
    albedo = blend(base * tone, rgb(0.42, 0.34, 0.24), bare * (kind == Region.TERRAIN))
    albedo = blend(albedo, rgb(0.85, 0.85, 0.82), 0.85 * (ground.paint(s, left) & (kind == Region.ROAD)))
    kerb = (z > 0.002) & (z < ground.kerb_m - 0.002)
    return blend(albedo, rgb(0.6, 0.6, 0.58), kerb)
