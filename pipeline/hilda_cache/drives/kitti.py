"""What KITTI's releases share: sweeps, calibration and pose text files, and how a projection matrix is taken apart.

Source: Geiger, Lenz, Stiller, Urtasun, "Vision meets Robotics: The KITTI Dataset", IJRR 2013, and its development
kit. Frames: velo (the HDL-64: x forward, y left, z up), rect (camera 0 after rectification: x right, y down,
z forward), imu (the OXTS unit: x forward, y left, z up). Camera i shares rect's axes: P_i = K [I | t].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.files import (
    MAX_SWEEP_BYTES,
    check_range,
    drop_non_finite,
    first_image_size_px,
    read_bytes,
    read_float32_rows,
    read_text,
)
from hilda_cache.drives.frame import CameraView, Float64Array, Points
from hilda_cache.drives.transforms import inverse_se3, se3
from hilda_schema.errors import DriveError

FRAME_INTERVAL_NS = 100_000_000
"""The scanner turns ten times a second; frames without published time stamps are taken to be this far apart."""

_DAMAGED = "download this part of the dataset again"


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Where the sensors of a KITTI drive sit."""

    projections: dict[int, Float64Array]  # camera number -> P (3, 4), from rect to pixels
    rect_SE3_velo: Float64Array  # (4, 4)
    velo_SE3_imu: Float64Array | None = None  # (4, 4)
    sizes_px: dict[int, tuple[int, int]] = field(default_factory=dict)  # camera number -> (width, height)

    def camera(self, number: int) -> tuple[Float64Array, Float64Array]:
        """Intrinsics K (3, 3) and `cam_SE3_velo` (4, 4) of a rectified camera: P X_rect = K (X_rect + K^-1 p)."""
        projection = self.projections[number]
        intrinsics = projection[:, :3]
        cam_SE3_rect = se3(np.eye(3), np.linalg.solve(intrinsics, projection[:, 3]))
        return intrinsics, cam_SE3_rect @ self.rect_SE3_velo


def read_velodyne(path: Path, label_path: Path | None = None) -> tuple[Points, int]:
    """Read a sweep of x, y, z [m] and reflectance (0 to 1), and how many non-finite points were left out.

    Args:
        path: `.bin`, 4 float32 a point.
        label_path: `.label`, one uint32 a point, with the class in the lower 16 bits.

    Raises:
        MissingSensor: a file is not there.
        DriveError: it is not a whole number of points, holds other than coordinates and reflectances, or the labels
            are not one per point.
    """
    rows = read_float32_rows(path, 4)
    label = None if label_path is None else _read_labels(label_path, len(rows))
    points, dropped = drop_non_finite(Points(np.ascontiguousarray(rows[:, :3]), rows[:, 3].copy(), label=label))
    check_range(points.xyz_m, path)
    if ((points.intensity < 0) | (points.intensity > 1)).any():
        raise DriveError(
            f"{path}: reflectance leaves 0..1, so these are not points of {4 * rows.itemsize} bytes (4 x float32)",
            "give files of x, y, z, reflectance as KITTI defines them",
        )
    return points, dropped


def _read_labels(path: Path, points: int) -> NDArray[np.uint16]:
    data = read_bytes(path, MAX_SWEEP_BYTES)
    if len(data) != 4 * points:
        raise DriveError(f"{path} holds {len(data)} bytes for {points} points, expected 4 a point", _DAMAGED)
    return (np.frombuffer(data, "<u4") & 0xFFFF).astype(np.uint16)


def read_object_calibration(path: Path) -> Calibration:
    """Read the one-file format of the object, tracking (`R_rect`, `Tr_velo_cam`) and odometry (`Tr`) benchmarks.

    Raises:
        DriveError: a matrix is missing or damaged.
    """
    table = _read_table(path)
    imu = _first(table, ("Tr_imu_to_velo", "Tr_imu_velo"))
    if "Tr" in table:  # odometry: velo to rect in one step
        rect_SE3_velo = _pose(table["Tr"], f"{path}, Tr")
    else:
        velo_to_cam = _required(table, ("Tr_velo_to_cam", "Tr_velo_cam"), path)
        rectify = _required(table, ("R0_rect", "R_rect"), path)
        rect_SE3_velo = _rotation(rectify, f"{path}, R0_rect") @ _pose(velo_to_cam, f"{path}, Tr_velo_to_cam")
    return Calibration(
        projections={number: _projection(table, f"P{number}", path) for number in range(4) if f"P{number}" in table},
        rect_SE3_velo=rect_SE3_velo,
        velo_SE3_imu=None if imu is None else _pose(imu, f"{path}, Tr_imu_to_velo"),
    )


def read_raw_calibration(folder: Path) -> Calibration:
    """Read the raw recordings' format: `calib_cam_to_cam.txt`, `calib_velo_to_cam.txt`, `calib_imu_to_velo.txt`.

    Raises:
        DriveError: a file or matrix is missing or damaged (`calib_imu_to_velo.txt` may be absent).
    """
    cameras_path, imu_path = folder / "calib_cam_to_cam.txt", folder / "calib_imu_to_velo.txt"
    cameras = _read_table(cameras_path)
    rectify = _rotation(_required(cameras, ("R_rect_00",), cameras_path), f"{cameras_path}, R_rect_00")
    numbers = [number for number in range(4) if f"P_rect_{number:02d}" in cameras]
    sizes = {number: _required(cameras, (f"S_rect_{number:02d}",), cameras_path) for number in numbers}
    return Calibration(
        projections={number: _projection(cameras, f"P_rect_{number:02d}", cameras_path) for number in numbers},
        rect_SE3_velo=rectify @ _read_rigid(folder / "calib_velo_to_cam.txt"),
        velo_SE3_imu=_read_rigid(imu_path) if imu_path.exists() else None,
        sizes_px={number: _size(size, cameras_path) for number, size in sizes.items()},
    )


def read_poses(path: Path) -> list[Float64Array]:
    """Read poses, one row-major (3, 4) matrix a line, as (4, 4).

    Raises:
        DriveError: a line is not 12 numbers, or not a rigid transform.
    """
    lines = read_text(path).splitlines()
    return [
        _pose(_floats(line.split(), where), where)
        for number, line in enumerate(lines, start=1)
        if line.strip()
        for where in [f"{path}, line {number}"]
    ]


def numbered_sweeps(folder: Path) -> list[Path]:
    """The `.bin` files of a folder in the order of their numbers.

    Raises:
        DriveError: there is none, or one is not named by a number.
    """
    sweeps = list(folder.glob("*.bin"))
    if odd := next((path for path in sweeps if not path.stem.isdecimal()), None):
        raise DriveError(f"{odd} is not named by its frame number", "leave only the dataset's own files there")
    if not sweeps:
        raise DriveError(f"{folder} holds no sweep (.bin)", "fetch the LiDAR part of the dataset")
    return sorted(sweeps, key=lambda path: int(path.stem))


def rectified_views(
    name: str,
    number: int,
    calibration: Calibration,
    images: Sequence[Path],
    stamps_ns: Sequence[int],
    ego_SE3_lidar: Float64Array,
    world_SE3_ego: Sequence[Float64Array],
) -> list[CameraView]:
    """Views of one rectified camera, one per frame: image, time stamp and pose of the same row belong together.

    Args:
        name: of the camera.
        number: of the camera, in the calibration.
        calibration: the drive's.
        images: one a frame.
        stamps_ns: one a frame.
        ego_SE3_lidar: (4, 4).
        world_SE3_ego: (4, 4) one a frame, at the image's time.

    Raises:
        DriveError: the camera is not calibrated, or its image size is neither recorded nor to be had from an image.
    """
    if number not in calibration.projections:
        raise DriveError(f"{images[0].parent} holds images of a camera without calibration", _DAMAGED)
    intrinsics, cam_SE3_lidar = calibration.camera(number)
    cam_SE3_ego = cam_SE3_lidar @ inverse_se3(ego_SE3_lidar)
    size_px = calibration.sizes_px.get(number) or first_image_size_px(images)
    if size_px is None:
        raise DriveError(f"no image can be opened in {images[0].parent}", "fetch the images, or remove the folder")
    return [
        CameraView(name, image, stamp_ns, intrinsics, cam_SE3_ego, pose, *size_px)
        for image, stamp_ns, pose in zip(images, stamps_ns, world_SE3_ego, strict=True)
    ]


def image_names(folder: Path, stems: Sequence[str]) -> list[str]:
    """File names of a camera's images for frames of those stems; `.jpg` where a user has repacked all of them."""
    suffix = ".jpg" if any(folder.glob("*.jpg")) and not any(folder.glob("*.png")) else ".png"
    return [f"{stem}{suffix}" for stem in stems]


def read_oxts_poses(paths: list[Path]) -> list[Float64Array]:
    """Read GPS/IMU packets as `world_SE3_imu` (4, 4), world being the IMU at the first of them.

    Mercator projection as in the raw development kit: x = s r pi lon / 180, y = s r ln tan(pi (90 + lat) / 360),
    z = altitude, rotation Rz(yaw) Ry(pitch) Rx(roll), with r the Earth's radius and s the cosine of the first
    latitude, which makes the map's units metres there.

    Args:
        paths: one packet each: latitude and longitude [deg], altitude [m], roll, pitch, yaw [rad], and more.

    Raises:
        DriveError: a packet is missing or damaged.
    """
    packets = [_floats(read_text(path, max_bytes=1 << 16).split(), str(path)) for path in paths]
    for path, packet in zip(paths, packets, strict=True):
        # Beyond 89 degrees the map is useless.
        if len(packet) < 6 or not np.isfinite(packet[:6]).all() or abs(packet[0]) >= 89:
            raise DriveError(f"{path} is not a packet of latitude, longitude, altitude, roll, pitch, yaw", _DAMAGED)
    scale = math.cos(math.radians(packets[0][0]))
    map_SE3_imu = [_mercator(packet, scale, str(path)) for path, packet in zip(paths, packets, strict=True)]
    world_SE3_map = inverse_se3(map_SE3_imu[0])
    return [world_SE3_map @ pose for pose in map_SE3_imu]


def _mercator(packet: NDArray[np.float64], scale: float, where: str) -> Float64Array:
    latitude_deg, longitude_deg, altitude_m, roll, pitch, yaw = packet[:6].tolist()
    earth_radius_m = 6_378_137.0
    x = scale * earth_radius_m * math.radians(longitude_deg)
    y = scale * earth_radius_m * math.log(math.tan(math.radians(90 + latitude_deg) / 2))
    rotation = _rotate(yaw, 2) @ _rotate(pitch, 1) @ _rotate(roll, 0)
    return se3(rotation, (x, y, altitude_m), where)


def _rotate(angle: float, axis: int) -> Float64Array:
    """Rotation about the x (0), y (1) or z (2) axis, right-handed."""
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotation[first, first] = rotation[second, second] = cosine
    rotation[second, first], rotation[first, second] = sine, -sine
    return rotation


def _read_table(path: Path) -> dict[str, NDArray[np.float64]]:
    """`name: numbers` lines; other lines (dates, corner distances in words) are passed over."""
    table: dict[str, NDArray[np.float64]] = {}
    for line in read_text(path, max_bytes=1 << 20).splitlines():
        name, colon, text = line.partition(":")
        if not colon or name == "calib_time":
            continue
        if name in table:
            raise DriveError(f"{path} gives {name} twice", _DAMAGED)
        table[name] = _floats(text.split(), f"{path}, {name}")
    return table


def _floats(words: list[str], where: str) -> NDArray[np.float64]:
    try:
        return np.array([float(word) for word in words])
    except ValueError as error:
        raise DriveError(f"{where} holds other than numbers", _DAMAGED) from error


def _first(table: Mapping[str, NDArray[np.float64]], names: tuple[str, ...]) -> NDArray[np.float64] | None:
    return next((table[name] for name in names if name in table), None)


def _required(table: Mapping[str, NDArray[np.float64]], names: tuple[str, ...], path: Path) -> NDArray[np.float64]:
    values = _first(table, names)
    if values is None:
        raise DriveError(f"{path} has no {' or '.join(names)}", "use a calibration file of the dataset's own")
    return values


def _shaped(values: NDArray[np.float64], shape: tuple[int, ...], where: str) -> Float64Array:
    if values.size != math.prod(shape):
        raise DriveError(f"{where} has {values.size} numbers, expected {math.prod(shape)}", _DAMAGED)
    return values.reshape(shape)


def _pose(values: NDArray[np.float64], where: str) -> Float64Array:
    matrix = _shaped(values, (3, 4), where)
    return se3(matrix[:, :3], matrix[:, 3], where)


def _rotation(values: NDArray[np.float64], where: str) -> Float64Array:
    return se3(_shaped(values, (3, 3), where), np.zeros(3), where)


def _read_rigid(path: Path) -> Float64Array:
    table = _read_table(path)
    rotation, translation = _required(table, ("R",), path), _required(table, ("T",), path)
    return se3(_shaped(rotation, (3, 3), f"{path}, R"), translation, str(path))


def _projection(table: Mapping[str, NDArray[np.float64]], name: str, path: Path) -> Float64Array:
    projection = _shaped(table[name], (3, 4), f"{path}, {name}")
    focal = projection[[0, 1], [0, 1]]
    if not np.isfinite(projection).all() or (focal <= 0).any() or projection[2, :3].tolist() != [0, 0, 1]:
        raise DriveError(f"{path}: {name} is not the projection of a rectified camera", _DAMAGED)
    return projection


def _size(values: NDArray[np.float64], path: Path) -> tuple[int, int]:
    if values.shape != (2,) or not ((values >= 1) & (values < 1 << 16)).all():
        raise DriveError(f"{path} gives an image size of {values.tolist()}", _DAMAGED)
    return int(values[0]), int(values[1])
