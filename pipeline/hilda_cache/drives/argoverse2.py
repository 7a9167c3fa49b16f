"""Argoverse 2 Sensor Dataset.

    <log>/sensors/lidar/<stamp_ns>.feather
    <log>/sensors/cameras/ring_front_center/<stamp_ns>.jpg, ...
    <log>/calibration/{intrinsics,egovehicle_SE3_sensor}.feather     may be absent: then the log has no cameras
    <log>/city_SE3_egovehicle.feather
    <log>/annotations.feather                                    boxes at the sweeps' stamps; not in the test split

A scene is a log, up to three levels below root: `<root>/sensor/val/<log>`, `<root>/val/<log>` or `<root>/<log>`.

Frames of reference. ego is the publisher's (rear axle: x forward, y left, z up), world is the city. Sweeps are given
in ego, already corrected for motion to the sweep's stamp. lidar is the upper of the two scanners, so that points have
the origin their rays start from (the lower one hangs 11 cm below it): in a log without calibration, its mounting on
every car of the fleet to the centimetre, `UP_LIDAR_IN_EGO_M`. Stamps are nanoseconds of the sweep's begin.

A sweep's image is the nearest in time, no further than half the camera's interval; where there is none, the view
names the image that would have been taken at the sweep's stamp, which is then missing like any other. Images are
rectified: the published k1, k2, k3 are those that the publisher has already taken out.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.feather import read_feather
from hilda_cache.drives.files import check_range, drop_non_finite, naming_frame
from hilda_cache.drives.frame import Annotation, CameraView, Float64Array, Frame, FrameInfo, Points, PointsReport
from hilda_cache.drives.scenes import FolderDrive
from hilda_cache.drives.transforms import inverse_se3, se3, transform_points
from hilda_schema.errors import DriveError, MissingSensor
from hilda_schema.keys import Key

UP_LIDAR_IN_EGO_M = (1.35, 0.0, 1.64)
"""Where the upper scanner sits, without its tilt of at most half a degree."""

_RING_TOLERANCE_NS = 27_000_000  # half of 20 Hz, and 2 ms of jitter
_STEREO_TOLERANCE_NS = 102_000_000  # half of 5 Hz, and 2 ms of jitter
_TOLERANCES_NS = {
    **{f"ring_{place}": _RING_TOLERANCE_NS for place in ("front_center", "front_left", "front_right")},
    **{f"ring_{place}": _RING_TOLERANCE_NS for place in ("rear_left", "rear_right", "side_left", "side_right")},
    **{f"stereo_{place}": _STEREO_TOLERANCE_NS for place in ("front_left", "front_right")},
}
_POSE = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
_INCOMPLETE = "download the log again"


class Argoverse2(FolderDrive):
    """Argoverse 2; see the module for the layout and the frames of reference.

    Intensity is the publisher's, 0 to 255; ring is `laser_number`; there are no labels.

    Args:
        root: folder of the dataset, of a split or of the logs.

    Raises:
        DriveError: no log in that folder, or one in two splits.
    """

    dataset = "argoverse2"
    version = ""
    OPTIONS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, root: Path) -> None:
        sweeps = [path for depth in ("*", "*/*", "*/*/*") for path in root.glob(f"{depth}/sensors/lidar")]
        super().__init__(root, (path.parent.parent for path in sweeps), "sensors/lidar in it")
        calibrated = any((log / "calibration").is_dir() for log in self.folders.values())
        self.camera_names = tuple(_TOLERANCES_NS) if calibrated else ()

    def read(self, info: FrameInfo) -> Frame:
        """Read the frame's points; points with a non-finite value are dropped and counted."""
        path = info.lidar_paths[0]
        with naming_frame(info.key):
            table = read_feather(path, ("x", "y", "z", "intensity", "laser_number", "offset_ns"))
            in_ego, dropped = drop_non_finite(
                Points(
                    np.stack([table[name].astype(np.float32) for name in "xyz"], axis=1),
                    table["intensity"].astype(np.float32),
                    time_offset_ns=_integers(table, "offset_ns", np.int32, path),
                    ring=_integers(table, "laser_number", np.uint8, path),
                )
            )
            check_range(in_ego.xyz_m, path)
            xyz_m = transform_points(inverse_se3(info.ego_SE3_lidar), in_ego.xyz_m).astype(np.float32)
            return Frame(info, replace(in_ego, xyz_m=xyz_m), PointsReport(non_finite=dropped))

    def annotations(self, scene: str) -> dict[str, Annotation]:
        """Boxes of the sweeps whose stamp `annotations.feather` has."""
        frames = self.frames(scene)
        path = self.below(self.folders[scene] / "annotations.feather")
        numbers = ("timestamp_ns", "length_m", "width_m", "height_m", *_POSE, "num_interior_pts")
        table = _read_table(path, numbers, ("track_uuid", "category"))
        stamps_ns = _integers(table, "timestamp_ns", np.int64, path)
        found = {}
        for info in frames:
            rows = np.flatnonzero(stamps_ns == info.stamp_ns)
            if len(rows):
                found[info.key.frame] = _annotation(table, rows, inverse_se3(info.ego_SE3_lidar), path)
        return found

    def _frames(self, scene: str, folder: Path) -> tuple[FrameInfo, ...]:
        sweeps = _stamped(folder / "sensors" / "lidar", ".feather")
        if not sweeps:
            raise DriveError(f"{folder / 'sensors' / 'lidar'} holds no sweep (.feather)", _INCOMPLETE)
        poses = _EgoPoses(folder / "city_SE3_egovehicle.feather")
        ego_SE3_lidar, cameras = se3(np.eye(3), UP_LIDAR_IN_EGO_M), []
        if (folder / "calibration").is_dir():
            ego_SE3_sensor = _extrinsics(folder / "calibration" / "egovehicle_SE3_sensor.feather")
            ego_SE3_lidar = ego_SE3_sensor.get("up_lidar", ego_SE3_lidar)
            cameras = self._views(folder, sweeps, ego_SE3_sensor, poses)
        return tuple(
            FrameInfo(
                key=Key(self.dataset, scene, str(stamp_ns)),
                stamp_ns=stamp_ns,
                lidar_paths=(self.below(folder / "sensors" / "lidar" / f"{stamp_ns}.feather"),),
                ego_SE3_lidar=ego_SE3_lidar,
                world_SE3_ego=poses.at(stamp_ns),
                cameras=tuple(views[index] for views in cameras),
            )
            for index, stamp_ns in enumerate(sweeps)
        )

    def _views(
        self, folder: Path, sweeps_ns: list[int], ego_SE3_sensor: dict[str, Float64Array], poses: _EgoPoses
    ) -> list[list[CameraView]]:
        """The views of every calibrated camera, one per sweep."""
        calibrated = _intrinsics(folder / "calibration" / "intrinsics.feather")
        cameras = []
        for name in (name for name in self.camera_names if name in calibrated):
            if name not in ego_SE3_sensor:
                raise DriveError(f"{folder / 'calibration'} does not say where {name} sits", _INCOMPLETE)
            images = folder / "sensors" / "cameras" / name
            stamps_ns = _nearest(_stamped(images, ".jpg"), sweeps_ns, _TOLERANCES_NS[name])
            intrinsics, width_px, height_px = calibrated[name]
            cam_SE3_ego = inverse_se3(ego_SE3_sensor[name])
            cameras.append(
                [
                    CameraView(
                        name,
                        self.below(images / f"{stamp_ns}.jpg"),
                        stamp_ns,
                        intrinsics,
                        cam_SE3_ego,
                        poses.at(stamp_ns),
                        width_px,
                        height_px,
                    )
                    for stamp_ns in stamps_ns
                ]
            )
        return cameras


class _EgoPoses:
    """`city_SE3_egovehicle.feather`: the vehicle's pose at the stamp of every sweep and image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = _read_table(path, ("timestamp_ns", *_POSE))
        stamps_ns = _integers(self.table, "timestamp_ns", np.int64, path)
        self.rows = {stamp_ns: row for row, stamp_ns in enumerate(stamps_ns.tolist())}

    def at(self, stamp_ns: int) -> Float64Array:
        """`world_SE3_ego` at that stamp."""
        if stamp_ns not in self.rows:
            raise DriveError(f"{self.path} has no pose at {stamp_ns} ns", _INCOMPLETE)
        return _pose(self.table, self.rows[stamp_ns], f"{self.path} at {stamp_ns} ns")


def _read_table(path: Path, numbers: tuple[str, ...], text: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """`read_feather` of a table: one that is not there is no missing sensor, but an incomplete log."""
    try:
        return read_feather(path, numbers, text)
    except MissingSensor as error:
        raise DriveError(error.message, _INCOMPLETE) from error


def _pose(table: dict[str, NDArray[Any]], row: int, where: str) -> Float64Array:
    qw, qx, qy, qz, *translation_m = (table[name][row] for name in _POSE)
    return se3((qw, qx, qy, qz), translation_m, where)


def _annotation(
    table: dict[str, NDArray[Any]], rows: NDArray[np.intp], lidar_SE3_ego: Float64Array, path: Path
) -> Annotation:
    poses = [lidar_SE3_ego @ _pose(table, int(row), f"{path}, row {row}") for row in rows]
    return Annotation(
        lidar_SE3_box=np.stack(poses),
        size_m=np.stack([table[name][rows] for name in ("length_m", "width_m", "height_m")], axis=1).astype(np.float64),
        category=tuple(map(str, table["category"][rows])),
        track=tuple(map(str, table["track_uuid"][rows])),
        points=_integers(table, "num_interior_pts", np.int64, path)[rows],
    )


def _extrinsics(path: Path) -> dict[str, Float64Array]:
    """Sensor name -> ego_SE3_sensor."""
    table = _read_table(path, _POSE, ("sensor_name",))
    return {str(name): _pose(table, row, f"{path}, {name}") for row, name in enumerate(table["sensor_name"])}


def _intrinsics(path: Path) -> dict[str, tuple[Float64Array, int, int]]:
    """Camera name -> K (3, 3), width and height in pixels."""
    names = ("fx_px", "fy_px", "cx_px", "cy_px", "width_px", "height_px")
    table = _read_table(path, names, ("sensor_name",))
    cameras = {}
    for row, camera in enumerate(table["sensor_name"]):
        fx, fy, cx, cy, width_px, height_px = (float(table[name][row]) for name in names)
        sized = all(1 <= size_px < 2**16 for size_px in (width_px, height_px))
        if not (sized and np.isfinite([fx, fy, cx, cy]).all() and min(fx, fy) > 0):
            raise DriveError(f"{path}: {camera} has no usable intrinsics", _INCOMPLETE)
        cameras[str(camera)] = (np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), int(width_px), int(height_px))
    return cameras


def _stamped(folder: Path, suffix: str) -> list[int]:
    """Sorted time stamps that name a folder's files; empty where there is no such folder."""
    paths = list(folder.glob(f"*{suffix}"))
    if odd := next((path for path in paths if not path.stem.isdecimal()), None):
        raise DriveError(f"{odd} is not named by its time stamp", "leave only the dataset's own files there")
    return sorted(int(path.stem) for path in paths)


def _nearest(stamps_ns: list[int], sweeps_ns: list[int], tolerance_ns: int) -> list[int]:
    """For every sweep the nearest stamp, or the sweep's own where none is within the tolerance."""
    nearest = []
    for sweep_ns in sweeps_ns:
        after = bisect_left(stamps_ns, sweep_ns)
        around = stamps_ns[max(after - 1, 0) : after + 1]
        best = min(around, key=lambda stamp_ns: abs(stamp_ns - sweep_ns), default=sweep_ns)
        nearest.append(best if abs(best - sweep_ns) <= tolerance_ns else sweep_ns)
    return nearest


def _integers(table: dict[str, NDArray[Any]], name: str, dtype: type[np.integer[Any]], path: Path) -> NDArray[Any]:
    column, limits = table[name], np.iinfo(dtype)
    if column.dtype.kind not in "iu" or ((column < limits.min) | (column > limits.max)).any():
        raise DriveError(f"{path}: column {name} does not hold integers of {limits.min} to {limits.max}", _INCOMPLETE)
    return column.astype(dtype)
