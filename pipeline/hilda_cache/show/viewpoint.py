"""The sweep in perspective, from behind and above the vehicle.

Legend: N points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EYE_M, TARGET_M = (-20.0, 0.0, 12.0), (15.0, 0.0, 0.0)  # x forwards, y left, z over the ground
HALF_FIELD = 0.62  # tangent of half the horizontal field of view
NEAREST_M = 1.0  # of what is drawn, from the eye
NEAR_GROUND_M = 20.0


def ground_height_m(xyz_m: NDArray[np.float32], ground: NDArray[np.bool_]) -> float:
    """Height of the road around the vehicle in the LiDAR frame; that of the lowest points where no ground is known.

    Args:
        xyz_m: (N, 3) LiDAR frame.
        ground: (N,).
    """
    near = np.linalg.norm(xyz_m[:, :2], axis=1) < NEAR_GROUND_M
    if (near & ground).any():
        return float(np.median(xyz_m[near & ground, 2]))
    return float(np.percentile(xyz_m[:, 2], 5)) if len(xyz_m) else 0.0


def in_perspective(over_ground_m: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Look from behind the vehicle, from above, ahead.

    Args:
        over_ground_m: (N, 3) x forwards, y left, z over the ground, about the vehicle.

    Returns:
        (N, 2) right and up from the middle of the picture, in halves of its width; (N,) depth in metres from the eye.
        Both are meaningless for depths below `NEAREST_M`.
    """
    eye, ahead = np.array(EYE_M), np.subtract(TARGET_M, EYE_M)
    forward = ahead / np.linalg.norm(ahead)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    offset = over_ground_m.astype(np.float64) - eye
    depth_m = offset @ forward
    scale = HALF_FIELD * np.maximum(depth_m, NEAREST_M)
    return np.stack([offset @ right / scale, offset @ up / scale], axis=1), depth_m
