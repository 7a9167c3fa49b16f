"""Rigid transforms in float64: what every reader builds from quaternions, matrices and translations.

Named `a_SE3_b`, a (4, 4) matrix that takes homogeneous points in frame b to frame a; metres. Datasets print
their rotations with 6 to 17 digits, so a matrix is accepted when it is a rotation to `TOLERANCE`, and kept as
given: rounding it to the nearest exact rotation would move points away from where the dataset's own tools put
them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilda_cache.drives.frame import Float64Array
from hilda_schema.errors import DriveError

TOLERANCE = 1e-3  # of a quaternion's norm and of R R^T = 1; tells a damaged record from printed digits

_REMEDY = "the calibration or pose file is damaged or written in another convention: download it again"


def quaternion_to_matrix(wxyz: ArrayLike, where: str = "") -> Float64Array:
    """Rotation matrix of a unit quaternion.

    Args:
        wxyz: (4,) scalar first. Its norm may be off by `TOLERANCE`, and is divided out.
        where: file and record, for the message.

    Returns:
        (3, 3) float64 rotation.

    Raises:
        DriveError: not four finite numbers, or not a unit quaternion.
    """
    quaternion = _finite(wxyz, (4,), "quaternion", where)
    norm = float(np.linalg.norm(quaternion))
    if abs(norm - 1) > TOLERANCE:
        raise DriveError(f"{_at(where)}quaternion {quaternion.tolist()} has norm {norm:.6g}, not 1", _REMEDY)
    w, x, y, z = quaternion / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_wxyz(rotation: Float64Array) -> list[float]:
    """Unit quaternion of a rotation matrix, scalar first and not negative.

    The eigenvector of Bar-Itzhack (2000), "New method for extracting the quaternion from a rotation matrix": no
    case is special, and it is exact to rounding for every rotation.
    """
    r = rotation
    symmetric = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
            [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
            [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], 0],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
        ]
    )
    x, y, z, w = np.linalg.eigh(symmetric)[1][:, -1]
    sign = -1.0 if w < 0 else 1.0
    return [float(sign * value) for value in (w, x, y, z)]


def se3(rotation_or_quaternion_wxyz: ArrayLike, translation_m: ArrayLike, where: str = "") -> Float64Array:
    """Rigid transform from its rotation and translation.

    Args:
        rotation_or_quaternion_wxyz: (3, 3) rotation matrix, or (4,) unit quaternion, scalar first.
        translation_m: (3,).
        where: file and record, for the message.

    Returns:
        (4, 4) float64.

    Raises:
        DriveError: a number is missing or not finite, or the rotation is none (scaled, skewed or mirrored).
    """
    transform = np.eye(4)
    rotation = _numbers(rotation_or_quaternion_wxyz, "rotation", where)
    if rotation.shape == (4,):
        rotation = quaternion_to_matrix(rotation, where)
    rotation = _finite(rotation, (3, 3), "rotation", where)
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if error > TOLERANCE or np.linalg.det(rotation) < 0:
        raise DriveError(f"{_at(where)}matrix {rotation.tolist()} is no rotation: R R^T is off by {error:.3g}", _REMEDY)
    transform[:3, :3] = rotation
    transform[:3, 3] = _finite(translation_m, (3,), "translation", where)
    return transform


def inverse_se3(a_SE3_b: Float64Array) -> Float64Array:
    """The (4, 4) transform back, `b_SE3_a`; exact also where the rotation is one to printed digits only."""
    inverse = np.eye(4)
    # Not R^T: for a rotation printed with 7 digits that is off by 1e-7, which forward and back would add up.
    inverse[:3, :3] = np.linalg.inv(a_SE3_b[:3, :3])
    inverse[:3, 3] = -inverse[:3, :3] @ a_SE3_b[:3, 3]
    return inverse


def transform_points(a_SE3_b: Float64Array, points_b_m: NDArray[np.floating]) -> Float64Array:
    """Take points from frame b to frame a.

    Args:
        a_SE3_b: (4, 4).
        points_b_m: (N, 3) of any floating dtype.

    Returns:
        (N, 3) float64: world coordinates of kilometres lose millimetres in float32.
    """
    points: Float64Array = points_b_m.astype(np.float64) @ a_SE3_b[:3, :3].T + a_SE3_b[:3, 3]
    return points


def interpolate_se3(stamps_ns: Sequence[int], world_SE3_body: Sequence[Float64Array], stamp_ns: int) -> Float64Array:
    """Pose of a moving body between or shortly beyond recorded ones, turning and moving at constant speed.

    Args:
        stamps_ns: strictly increasing, one per pose, at least one.
        world_SE3_body: recorded (4, 4) poses.
        stamp_ns: the time asked for; before the first or after the last pose, the motion of the nearest pair goes on.

    Returns:
        (4, 4): the position is linear in time, the rotation a geodesic (R0 exp(s log(R0^T R1)), Rodrigues' formula).
    """
    if len(world_SE3_body) == 1:
        return world_SE3_body[0]
    before = min(max(bisect_right(stamps_ns, stamp_ns) - 1, 0), len(stamps_ns) - 2)
    start, end = world_SE3_body[before], world_SE3_body[before + 1]
    fraction = (stamp_ns - stamps_ns[before]) / (stamps_ns[before + 1] - stamps_ns[before])
    turn = start[:3, :3].T @ end[:3, :3]
    skew = (turn - turn.T) / 2  # sin(angle) times the cross-product matrix of the axis
    sine = float(np.sqrt((skew**2).sum() / 2))
    pose = start.copy()
    if sine > np.finfo(np.float64).eps:
        angle = fraction * np.arctan2(sine, (np.trace(turn) - 1) / 2)
        axis = skew / sine
        pose[:3, :3] = start[:3, :3] @ (np.eye(3) + np.sin(angle) * axis + (1 - np.cos(angle)) * axis @ axis)
    pose[:3, 3] += fraction * (end[:3, 3] - start[:3, 3])
    return pose


def _numbers(values: ArrayLike, what: str, where: str) -> Float64Array:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DriveError(f"{_at(where)}{what} is not made of numbers", _REMEDY) from error


def _finite(values: ArrayLike, shape: Sequence[int], what: str, where: str) -> Float64Array:
    array = _numbers(values, what, where)
    if array.shape != tuple(shape):
        raise DriveError(f"{_at(where)}{what} has shape {array.shape}, expected {tuple(shape)}", _REMEDY)
    if not np.isfinite(array).all():
        raise DriveError(f"{_at(where)}{what} {array.tolist()} is not finite", _REMEDY)
    return array


def _at(where: str) -> str:
    return f"{where}: " if where else ""
