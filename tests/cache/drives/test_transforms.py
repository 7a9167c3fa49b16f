"""Rigid transforms against scipy's rotations, and the records they must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from hilda_cache.drives.transforms import (
    interpolate_se3,
    inverse_se3,
    quaternion_to_matrix,
    se3,
    transform_points,
)
from hilda_schema.errors import DriveError

rotation_vectors = hnp.arrays(np.float64, 3, elements=st.floats(-3, 3))
positions = hnp.arrays(np.float64, 3, elements=st.floats(-1e4, 1e4))


@given(rotation_vectors)
def test_quaternion_agrees_with_scipy(rotvec):
    rotation = Rotation.from_rotvec(rotvec)
    x, y, z, w = rotation.as_quat()

    np.testing.assert_allclose(quaternion_to_matrix((w, x, y, z)), rotation.as_matrix(), atol=1e-14)


def test_quaternion_order_is_scalar_first():
    quarter_turn_about_z = quaternion_to_matrix((np.sqrt(0.5), 0, 0, np.sqrt(0.5)))

    np.testing.assert_allclose(quarter_turn_about_z @ (1, 0, 0), (0, 1, 0), atol=1e-15)


@given(rotation_vectors, st.floats(0.9991, 1.0009))
def test_a_nearly_unit_quaternion_still_gives_an_exact_rotation(rotvec, norm):
    rotation = quaternion_to_matrix(Rotation.from_rotvec(rotvec).as_quat()[[3, 0, 1, 2]] * norm)

    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)


@given(rotation_vectors, positions)
def test_there_and_back_is_where_one_was(rotvec, position):
    transform = se3(Rotation.from_rotvec(rotvec).as_matrix(), position)

    np.testing.assert_allclose(inverse_se3(transform) @ transform, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(inverse_se3(transform), np.linalg.inv(transform), atol=1e-10)


def test_a_rotation_printed_with_seven_digits_is_kept_and_inverted_exactly():
    printed = np.array(
        [
            [9.999239e-01, 9.837760e-03, -7.445048e-03],
            [-9.869795e-03, 9.999421e-01, -4.278459e-03],
            [7.402527e-03, 4.351614e-03, 9.999631e-01],
        ]
    )
    transform = se3(printed, (1, 2, 3))

    assert (transform[:3, :3] == printed).all()
    np.testing.assert_allclose(inverse_se3(transform) @ transform, np.eye(4), atol=1e-15)


@given(rotation_vectors, positions, hnp.arrays(np.float32, (5, 3), elements=st.floats(-200, 200, width=32)))
def test_points_are_taken_one_by_one_as_homogeneous_vectors(rotvec, position, points):
    transform = se3(Rotation.from_rotvec(rotvec).as_matrix(), position)

    expected = [(transform @ np.append(point.astype(np.float64), 1))[:3] for point in points]

    np.testing.assert_allclose(transform_points(transform, points), expected, atol=1e-9)
    assert transform_points(transform, points).dtype == np.float64


@pytest.mark.parametrize(
    ("rotation", "translation", "said"),
    [
        ((1, 0, 0), (0, 0, 0), "shape"),
        ((2, 0, 0, 0), (0, 0, 0), "norm 2"),
        ((0, 0, 0, 0), (0, 0, 0), "norm 0"),
        ((float("nan"), 0, 0, 1), (0, 0, 0), "not finite"),
        (np.diag([1, 1, 1.01]), (0, 0, 0), "no rotation"),
        (np.diag([1, 1, -1]), (0, 0, 0), "no rotation"),  # a mirror
        (np.eye(3), (0, 0), "shape"),
        (np.eye(3), (0, 0, float("inf")), "not finite"),
        (np.eye(3), (0, 0, "north"), "numbers"),
        (None, (0, 0, 0), "shape"),
        ((10**400, 0, 0, 1), (0, 0, 0), "numbers"),
        ([[1, 0, 0], [0, 1], [0, 0, 1]], (0, 0, 0), "numbers"),
    ],
)
def test_what_is_no_rigid_transform_is_refused_by_name(rotation, translation, said):
    with pytest.raises(DriveError, match=f"poses.json, pose 7.*{said}"):
        se3(rotation, translation, "poses.json, pose 7")


@given(rotation_vectors, rotation_vectors, positions, positions, st.integers(-150, 250))
def test_interpolation_is_constant_motion(start_rotvec, velocity, start_m, step_m, percent):
    """A body that turns about a fixed axis at constant speed, seen at two moments, is found at any third."""
    start = Rotation.from_rotvec(start_rotvec)
    velocity = velocity / 2  # twice the interval must stay below half a turn for the pair to determine the axis

    def pose(fraction):
        return se3((start * Rotation.from_rotvec(velocity * fraction)).as_matrix(), start_m + fraction * step_m)

    found = interpolate_se3([1000, 2000], [pose(0), pose(1)], 1000 + 10 * percent)

    np.testing.assert_allclose(found, pose(percent / 100), atol=1e-7)


def test_interpolation_uses_the_pair_around_the_moment():
    poses = [se3(np.eye(3), (x, 0, 0)) for x in (0.0, 1.0, 5.0, 5.0)]
    stamps = [0, 10, 20, 30]

    x_at = [interpolate_se3(stamps, poses, stamp)[0, 3] for stamp in (-5, 0, 5, 10, 15, 20, 30, 40)]

    assert x_at == [-0.5, 0.0, 0.5, 1.0, 3.0, 5.0, 5.0, 5.0]
    assert (interpolate_se3([7], poses[1:2], 99) == poses[1]).all()
