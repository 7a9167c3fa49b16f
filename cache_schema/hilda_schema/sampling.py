"""Reading a token grid where a point projects.

The same sampling as `torch.nn.functional.grid_sample(..., align_corners=False, padding_mode="border")`, in NumPy: a
grid of H x W tokens covers the image, token centres at (x + 0.5) / W, and positions beyond the outer centres take the
border.

Legend: V cameras, H x W token grid, C channels, P pairs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

BLOCK_PAIRS = 1024  # keeps the gathered rows of a block in the processor's cache

Mode = Literal["bilinear", "nearest"]


def sample_grid(
    grid: NDArray[np.float32], camera: NDArray[np.integer], uv: NDArray[np.float64], mode: Mode = "bilinear"
) -> NDArray[np.float32]:
    """Sample token grids at pairs' positions.

    Args:
        grid: (V, H, W, C).
        camera: (P,) index into V.
        uv: (P, 2) position in the image, ((u + 0.5) / width_px, (v + 0.5) / height_px).
        mode: "bilinear", or "nearest" (halves go to the even token, as in torch).

    Returns:
        (P, C) float32.
    """
    V, H, W, C = grid.shape
    tokens = grid.reshape(V * H * W, C)
    x = np.clip(uv[:, 0] * W - 0.5, 0, W - 1)
    y = np.clip(uv[:, 1] * H - 0.5, 0, H - 1)
    first = camera.astype(np.int64) * (H * W)
    if mode == "nearest":
        nearest: NDArray[np.float32] = tokens[first + np.rint(y).astype(np.int64) * W + np.rint(x).astype(np.int64)]
        return nearest
    return _bilinear(tokens, first, x, y, H, W)


def _bilinear(
    tokens: NDArray[np.float32],
    first: NDArray[np.int64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    H: int,
    W: int,
) -> NDArray[np.float32]:
    """Weighted sum of the four tokens around (x, y)."""
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, below = (x - x0).astype(np.float32)[:, None], (y - y0).astype(np.float32)[:, None]
    step_x = (x0 < W - 1).astype(np.int64)
    step_y = np.where(y0 < H - 1, W, 0)
    corner = first + y0 * W + x0
    out = np.empty((len(x), tokens.shape[1]), np.float32)
    for start in range(0, len(x), BLOCK_PAIRS):
        block = slice(start, start + BLOCK_PAIRS)
        at, dx, dy = corner[block], step_x[block], step_y[block]
        r, b = right[block], below[block]
        upper = tokens[at] * (1 - r)
        upper += tokens[at + dx] * r
        lower = tokens[at + dy] * (1 - r)
        lower += tokens[at + dy + dx] * r
        upper *= 1 - b
        lower *= b
        np.add(upper, lower, out=out[block])
    return out
