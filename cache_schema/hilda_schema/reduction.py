"""Fewer channels: coordinates of a feature in a subspace, and the way back.

    y = reduce_channels(x, basis)      # (..., C) -> (..., K): what is stored
    x' = lift_channels(y, basis)       # (..., K) -> (..., C): the nearest point of the subspace to x

The rows of a basis are orthonormal and nothing is subtracted, so lengths, angles and distances of what is stored are
those of the lifted features: an objective means the same in K channels as in C.

Legend: C channels of the model, K stored ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hilda_schema.manifest import sha256_hex

ORTHONORMAL = 1e-4  # of B B^T from the identity: rows rounded to float32 stay far below


def reduce_channels(values: NDArray[np.float32], basis: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., C) features to (..., K) coordinates along the rows of `basis`, (K, C); NaN stays NaN."""
    reduced: NDArray[np.float32] = values @ basis.T
    return reduced


def lift_channels(values: NDArray[np.float32], basis: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., K) coordinates along the rows of `basis`, (K, C), to (..., C) features of the model; NaN stays NaN."""
    lifted: NDArray[np.float32] = values @ basis
    return lifted


def basis_sha256(basis: NDArray[np.float32]) -> str:
    """sha256 of a (K, C) basis: its values row by row, little-endian."""
    return sha256_hex(np.ascontiguousarray(basis, "<f4").tobytes())


def is_orthonormal(basis: NDArray[np.float32]) -> bool:
    """Whether the rows of a (K, C) basis have length 1 and stand at right angles; False where one is not finite."""
    exact = basis.astype(np.float64)
    return bool(np.isfinite(exact).all() and np.abs(exact @ exact.T - np.eye(len(exact))).max() <= ORTHONORMAL)
