"""The recording vehicle's sensors: one 32-beam LiDAR on the roof and six cameras around it.

Places, fields of view and time offsets are like those of nuScenes' vehicles: a LiDAR whose x axis points to the
right, five cameras of 65 degrees, a rear camera of 90, each image taken when the LiDAR sweeps past its view, up
to 43 ms before the sweep's stamp. Every scene has a calibration of its own, a fraction of a degree and a
centimetre away from the nominal one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from hilda_cache.drives.frame import Float64Array
from hilda_cache.drives.synthetic.primitives import rotation_x, rotation_y, rotation_z

_EGO_R_CAM = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # a camera that looks along ego x


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A pinhole camera without distortion."""

    name: str
    width_px: int
    height_px: int
    intrinsics: Float64Array  # (3, 3)
    ego_SE3_cam: Float64Array  # (4, 4)
    offset_us: int  # from the sweep's time stamp


@dataclass(frozen=True, slots=True, eq=False)
class Lidar:
    """A spinning LiDAR. A sweep is taken at one instant: there is no motion inside it."""

    ego_SE3_lidar: Float64Array  # (4, 4)
    azimuth_steps: int
    elevations_rad: Float64Array  # (rings,) ascending
    max_range_m: float = 95.0


@dataclass(frozen=True, slots=True, eq=False)
class Rig:
    """All sensors of a scene."""

    lidar: Lidar
    cameras: tuple[Camera, ...]


# name: x, y, z in metres; yaw in degrees; focal length in image widths; microseconds from the sweep's stamp
_CAMERAS = {
    "CAM_FRONT": (1.70, 0.0, 1.51, 0.0, 0.79, -35_500),
    "CAM_FRONT_RIGHT": (1.55, -0.49, 1.50, -55.0, 0.79, -27_600),
    "CAM_BACK_RIGHT": (1.01, -0.48, 1.56, -110.0, 0.79, -20_100),
    "CAM_BACK": (0.03, 0.0, 1.57, 180.0, 0.505, -10_400),
    "CAM_BACK_LEFT": (1.03, 0.48, 1.58, 110.0, 0.79, -500),
    "CAM_FRONT_LEFT": (1.52, 0.49, 1.51, 55.0, 0.79, -43_100),
}
_RINGS = 32
_LOWEST_DEG, _HIGHEST_DEG = -30.67, 10.67


def build_rig(rng: Generator, image_size_px: tuple[int, int], azimuth_steps: int) -> Rig:
    """Draw a scene's calibration.

    Args:
        rng: source of the deviations from the nominal places.
        image_size_px: width and height of all images.
        azimuth_steps: LiDAR columns a turn.
    """
    elevations = np.deg2rad(np.linspace(_LOWEST_DEG, _HIGHEST_DEG, _RINGS))
    mount = _deviate(rng, np.array([0.94, 0.0, 1.84]), rotation_z(-np.pi / 2))
    width, height = image_size_px
    cameras = []
    for name, (x, y, z, yaw_deg, focal, offset_us) in _CAMERAS.items():
        focal_px = focal * width * rng.uniform(0.99, 1.01)
        centre_px = np.array([width, height]) * rng.uniform(0.49, 0.52, 2)
        intrinsics = np.array([[focal_px, 0, centre_px[0]], [0, focal_px, centre_px[1]], [0, 0, 1.0]])
        pose = _deviate(rng, np.array([x, y, z]), rotation_z(np.deg2rad(yaw_deg)) @ _EGO_R_CAM)
        cameras.append(Camera(name, width, height, intrinsics, pose, offset_us))
    return Rig(Lidar(mount, azimuth_steps, elevations), tuple(cameras))


def _deviate(rng: Generator, place_m: Float64Array, rotation: Float64Array) -> Float64Array:
    roll, pitch, yaw = np.deg2rad(rng.uniform(-0.5, 0.5, 3))
    pose = np.eye(4)
    pose[:3, :3] = rotation_z(yaw) @ rotation_y(pitch) @ rotation_x(roll) @ rotation
    pose[:3, 3] = place_m + rng.uniform(-0.01, 0.01, 3)
    return pose
