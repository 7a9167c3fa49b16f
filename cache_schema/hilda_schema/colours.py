"""Colours of features: the three strongest principal components as red, green and blue.

Here because the pictures of both stages use them: a teacher's feature has one colour, whoever draws it.

Legend: P rows of features (pairs or points), C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 8192  # keeps the float64 copy of a block of features small
PERCENTILES = (1.0, 99.0)
DARKEST = 0.12  # pictures have a dark background, on which black points would be lost


@dataclass(frozen=True, slots=True, eq=False)
class Palette:
    """What the colours mean: the components of some reference features, and where these lie along them."""

    mean: NDArray[np.float64]  # (C,)
    components: NDArray[np.float64]  # (K, C) unit vectors, the strongest first
    low: NDArray[np.float64]  # (K,) 1st percentile of the reference
    high: NDArray[np.float64]  # (K,) 99th percentile

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Palette:
        """The palette of (P, C) finite reference features.

        Components are those of the centred features, in float64. An eigenvector is defined up to its sign: each is
        turned so that its entry of largest magnitude is positive, hence the same features have the same colours
        everywhere.
        """
        components = principal_components(features)
        if not len(components):
            return cls(np.zeros(features.shape[1]), components, np.zeros(0), np.zeros(0))
        mean = _mean(features)
        low, high = np.percentile(_along(features, mean, components), PERCENTILES, axis=0)
        return cls(mean, components, low, high)

    def colours(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map features to colours.

        Each component is scaled between the reference's 1st and 99th percentile and clipped, so that a few odd points
        do not make all others alike.

        Args:
            features: (P, C) finite.

        Returns:
            (P, 3) from `DARKEST` to 1; halfway for a component beyond the reference's rank or the same in nearly all
            of it.
        """
        scaled = np.full((len(features), 3), 0.5)
        varies = self.high > self.low  # else only a few odd points differ
        if varies.any() and len(features):
            values = _along(features, self.mean, self.components)
            span = (self.high - self.low)[varies]
            scaled[:, np.flatnonzero(varies)] = np.clip((values - self.low)[:, varies] / span, 0, 1)
        return DARKEST + (1 - DARKEST) * scaled


def pca_colours(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """(P, 3) colours of (P, C) finite features by their own palette; see `Palette`."""
    return Palette.of(features).colours(features)


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


def _along(
    features: NDArray[np.floating], mean: NDArray[np.float64], components: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(P, K) coordinates of features along the components."""
    return np.concatenate([(block - mean) @ components.T for block in _blocks(features)])


def _blocks(features: NDArray[np.floating]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(features), BLOCK_ROWS):
        yield features[start : start + BLOCK_ROWS].astype(np.float64)


def _mean(features: NDArray[np.floating]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = features.mean(axis=0, dtype=np.float64)
    return mean
