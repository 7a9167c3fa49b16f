"""The one noise texture of the synthetic world: leaves, asphalt, plaster and clouds are all cut from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 for cameras, float64 for the LiDAR
Float32Array = NDArray[np.float32]

_TILE = 512  # cells of the tile, a power of two


def _noise_tile() -> Float32Array:
    """Tileable noise in 0 to 1 with detail at every scale, the same in every drive."""
    rng = np.random.default_rng(20240229)
    total = np.zeros((_TILE, _TILE))
    for octave in range(2, 10):
        coarse = rng.uniform(-1, 1, (1 << octave, 1 << octave))
        position = np.arange(_TILE) * (1 << octave) / _TILE
        low = position.astype(int)
        share = position - low
        high = (low + 1) % (1 << octave)
        rows = coarse[low] * (1 - share)[:, None] + coarse[high] * share[:, None]
        total += (rows[:, low] * (1 - share) + rows[:, high] * share) * 0.8**octave
    ranks = np.argsort(np.argsort(total, axis=None)).reshape(total.shape)
    tile: Float32Array = (ranks / total.size).astype(np.float32)
    return tile


_NOISE = _noise_tile()


def noise(u: Array, v: Array, cells_per_m: float) -> Float32Array:
    """Noise in 0 to 1, evenly distributed, at texture coordinates in metres, of any shape."""
    column = (u * cells_per_m + 65536).astype(np.int32) & (_TILE - 1)
    row = (v * cells_per_m + 65536).astype(np.int32) & (_TILE - 1)
    picked: Float32Array = _NOISE[row, column]
    return picked
