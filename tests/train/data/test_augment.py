"""Augmentation: one draw, and a geometry that stays one scene."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hilda_train.data.augment import IDENTITY, AugmentOptions, draw

seeds = st.integers(0, 2**32 - 1)


def random_pose(rng: np.random.Generator) -> np.ndarray:
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    pose[:3, 3] = rng.normal(size=3) * 10
    return pose


@given(seeds)
def test_poses_turn_with_the_points(seed: int) -> None:
    """Augmenting, then moving by the augmented pose, is moving, then augmenting."""
    rng = np.random.default_rng(seed)
    augmentation, pose = draw(AugmentOptions(), rng), random_pose(rng)
    xyz_m = rng.normal(size=(50, 3)).astype(np.float32) * 30
    moved = xyz_m @ pose[:3, :3].T + pose[:3, 3]
    expected = moved @ augmentation.matrix.T
    turned = augmentation.pose(pose)
    got = augmentation.points(xyz_m) @ turned[:3, :3].T + turned[:3, 3]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@given(seeds)
def test_draws_keep_their_bounds(seed: int) -> None:
    options = AugmentOptions(rotation_deg=20, flip=0.0, scale=0.05, dropout=0.3)
    augmentation = draw(options, np.random.default_rng(seed))
    scale = abs(np.linalg.det(augmentation.matrix)) ** (1 / 3)
    assert 0.95 <= scale <= 1.05
    assert 0 <= augmentation.dropout <= 0.3
    turn = np.rad2deg(np.arctan2(augmentation.matrix[1, 0], augmentation.matrix[0, 0]))
    assert abs(turn) <= 20
    np.testing.assert_allclose(augmentation.matrix @ augmentation.matrix.T, scale**2 * np.eye(3), atol=1e-12)


def test_same_generator_same_draw_and_flips_happen() -> None:
    first, second = (draw(AugmentOptions(), np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first.matrix, second.matrix)
    signs = {np.sign(np.linalg.det(draw(AugmentOptions(), np.random.default_rng(k)).matrix)) for k in range(20)}
    assert signs == {-1.0, 1.0}


def test_nothing_drawn_changes_nothing() -> None:
    xyz_m = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    nothing = draw(AugmentOptions(rotation_deg=0, flip=0, scale=0), np.random.default_rng(0))
    for augmentation in (IDENTITY, nothing):
        np.testing.assert_array_equal(augmentation.points(xyz_m), xyz_m)
