"""Forwards is where the front camera looks, whatever the axes of the LiDAR."""

from __future__ import annotations

import numpy as np
import pytest

from hilda_schema.content import Pairs
from hilda_schema.viewpoint import forward_quarter, turn_about


def pairs_of(camera: list[int]) -> Pairs:
    count = len(camera)
    return Pairs(
        np.arange(count, dtype=np.uint32),
        np.array(camera, np.uint8),
        np.zeros((count, 2)),
        np.full(count, 9, np.float32),
        np.ones(count, np.bool_),
    )


def test_forwards_is_where_the_front_camera_looks() -> None:
    xyz_m = np.array([[0, 9, 0], [1, 9, 0], [-9, 0, 0]], np.float32)
    pairs = pairs_of([1, 1, 0])
    assert forward_quarter(["front_left", "front"], pairs, xyz_m) == 1
    assert abs(forward_quarter(["front", "back"], pairs, xyz_m)) == 2
    assert forward_quarter([], pairs_of([]), xyz_m) == 0


@pytest.mark.parametrize("quarters", range(-4, 5))
def test_turning_is_a_rotation(quarters: int) -> None:
    xyz_m = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    turn = quarters * np.pi / 2
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    np.testing.assert_allclose(turn_about(xyz_m, quarters), xyz_m[:, :2] @ rotation.T, atol=1e-6)
