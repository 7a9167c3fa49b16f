"""Colours of features: the first three principal components as red, green and blue.

Legend: P pairs, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 8192  # keeps the float64 copy of a block of features small
PERCENTILES = (1.0, 99.0)
DARKEST = 0.12  # pictures have a dark background, on which black points would be lost


def pca_colours(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Map features to colours.

    Components are those of the centred features, in float64. An eigenvector is defined up to its sign: each is turned
    so that its entry of largest magnitude is positive, hence the same features have the same colours everywhere.
    Each component is scaled between its 1st and 99th percentile and clipped, so that a few odd points do not make all
    others alike.

    Args:
        features: (P, C) finite.

    Returns:
        (P, 3) from `DARKEST` to 1; halfway for a component beyond the features' rank or the same at nearly all pairs.
    """
    scaled = np.full((len(features), 3), 0.5)
    components = principal_components(features)
    if not len(components):
        return DARKEST + (1 - DARKEST) * scaled
    mean = _mean(features)
    values = np.concatenate([(block - mean) @ components.T for block in _blocks(features)])
    low, high = np.percentile(values, PERCENTILES, axis=0)
    varies = high > low  # else only a few odd points differ
    scaled[:, np.flatnonzero(varies)] = np.clip((values - low)[:, varies] / (high - low)[varies], 0, 1)
    return DARKEST + (1 - DARKEST) * scaled


def principal_components(features: NDArray[np.floating], count: int = 3) -> NDArray[np.float64]:
    """The directions in which features vary most.

    Args:
        features: (P, C) finite.
        count: at most how many.

    Returns:
        (K, C) float64 unit vectors, the strongest first; K = min(count, rank), so 0 where nothing varies.
    """
    if not features.size:
        return np.zeros((0, features.shape[1]))
    mean = _mean(features)
    scatter = np.zeros((features.shape[1], features.shape[1]))
    for block in _blocks(features):
        centred = block - mean
        scatter += centred.T @ centred
    strength, vectors = np.linalg.eigh(scatter)
    rank = int((strength > len(strength) * np.finfo(np.float64).eps * strength[-1]).sum())
    strongest = vectors.T[::-1][: min(count, rank)]
    largest = np.take_along_axis(strongest, np.abs(strongest).argmax(axis=1)[:, np.newaxis], axis=1)
    components: NDArray[np.float64] = strongest * np.sign(largest)
    return components


def _blocks(features: NDArray[np.floating]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(features), BLOCK_ROWS):
        yield features[start : start + BLOCK_ROWS].astype(np.float64)


def _mean(features: NDArray[np.floating]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = features.mean(axis=0, dtype=np.float64)
    return mean
