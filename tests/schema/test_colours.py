"""Colours: components against NumPy's SVD, scaling by its own words, one meaning whoever draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_schema.colours import BLOCK_ROWS, DARKEST, Palette, pca_colours, principal_components


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(5, 300), st.integers(3, 40))
def test_components_are_those_of_numpys_svd(seed: int, count: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    spread = 2.0 ** -np.arange(channels)  # well apart, so that each direction is determined
    features = (rng.normal(size=(count, channels)) * spread) @ np.linalg.qr(rng.normal(size=(channels, channels)))[0]
    features += rng.normal(size=channels) * 10
    expected = np.linalg.svd(features - features.mean(0), full_matrices=False)[2][:3]
    found = principal_components(features)
    assert found.shape == (3, channels)
    np.testing.assert_allclose(np.abs((found * expected).sum(1)), 1, atol=1e-6)
    for component in found:
        assert component[np.abs(component).argmax()] > 0


def test_colours_are_the_scaled_projections() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(2 * BLOCK_ROWS + 5, 6)) * [9, 5, 3, 1, 0.5, 0.1] + 40).astype(np.float32)
    wide = features.astype(np.float64)
    projected = (wide - wide.mean(0)) @ principal_components(features).T
    low, high = np.percentile(projected, [1, 99], axis=0)
    expected = DARKEST + (1 - DARKEST) * np.clip((projected - low) / (high - low), 0, 1)
    np.testing.assert_allclose(pca_colours(features), expected, atol=1e-9)
    assert (pca_colours(features) == 1).mean(0) == pytest.approx([0.01] * 3, abs=1e-3)


def test_one_odd_point_does_not_make_the_others_alike() -> None:
    features = np.random.default_rng(1).normal(size=(1000, 4)) * [3, 2, 1, 0.1]
    before = pca_colours(features)
    features[0] = [1e4, 0, 0, 0]
    np.testing.assert_allclose(pca_colours(features)[1:, 0].std(), before[1:, 0].std(), rtol=0.1)


@pytest.mark.parametrize(
    ("features", "varying"),
    [
        (np.zeros((0, 8)), 0),
        (np.full((20, 8), 3.3), 0),
        (np.zeros((20, 8)), 0),
        (np.outer(np.arange(20), np.ones(8)), 1),
        (np.random.default_rng(0).normal(size=(20, 2)), 2),
        (np.ones((1, 8)), 0),
    ],
)
def test_components_that_do_not_exist_are_neutral(features: np.ndarray, varying: int) -> None:
    colours = pca_colours(features.astype(np.float32))
    assert colours.shape == (len(features), 3)
    assert (colours[:, varying:] == (1 + DARKEST) / 2).all()
    assert all(colours[:, k].std() > 0.1 for k in range(varying))


def test_a_palette_gives_other_features_the_colours_of_its_own() -> None:
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(500, 7)) * [9, 5, 3, 1, 0.5, 0.1, 0.1] + 4
    palette = Palette.of(reference)
    np.testing.assert_array_equal(palette.colours(reference[40:60]), pca_colours(reference)[40:60])
    # beyond the reference colours saturate, and no reference means no colour
    far = reference[:1] + 1e6 * palette.components[:1]
    assert palette.colours(far)[0, 0] == 1
    assert np.ptp(Palette.of(np.zeros((0, 7))).colours(reference)) == 0
    assert palette.colours(reference[:0]).shape == (0, 3)
