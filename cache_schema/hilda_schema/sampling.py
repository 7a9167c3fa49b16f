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

BLOCK_VALUES = 2**16  # a block of pairs has about so many features: they stay in the processor's cache

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
    rows = (corner, corner + step_x, corner + step_y, corner + step_x + step_y)
    weights = ((1 - right) * (1 - below), right * (1 - below), (1 - right) * below, right * below)
    out = np.empty((len(x), tokens.shape[1]), np.float32)
    size = max(1, BLOCK_VALUES // tokens.shape[1])
    scratch = np.empty((size, tokens.shape[1]), np.float32)
    for start in range(0, len(x), size):
        block = out[start : start + size]
        for k, (row, weight) in enumerate(zip(rows, weights, strict=True)):
            term = scratch[: len(block)] if k else block
            # mode="clip" writes straight into `out`; the rows are in range anyway.
            np.take(tokens, row[start : start + size], axis=0, out=term, mode="clip")
            term *= weight[start : start + size]
            if k:
                block += term
    return out
