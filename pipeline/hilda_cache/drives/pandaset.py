"""PandaSet (Hesai and Scale AI), in the layout its publisher gives out.

    <root>/002/lidar/{00.pkl.gz, ..., poses.json, timestamps.json}
    <root>/002/camera/front_camera/{00.jpg, ..., intrinsics.json, poses.json, timestamps.json}
    <root>/002/annotations/semseg/{00.pkl.gz, ...}      for some scenes
    <root>/002/annotations/cuboids/{00.pkl.gz, ...}     boxes, in the world

`.pkl` beside `.pkl.gz` is read too: one mirror gives the sweeps out unpacked.

Frames of reference. ego is the vehicle, whose pose `lidar/poses.json` holds: x right, y forward, z up. lidar is ego
moved to the optical centre of the Pandar64, with ego's axes; they are kept rather than turned to x forward, so that
points differ from the publisher's by a pose alone. Points of the PandarGT are given in the Pandar64's frame too: its
own optical centre is not part of the layout, and lies within decimetres. Camera poses are published for each image's
own time stamp; ego at that time is interpolated, and `cam_SE3_ego` is what then remains, so that the two together
are exactly the published pose.

Images are rectified: the publisher's tools project with the pinhole intrinsics alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.files import check_range, first_image_size_px, naming_frame, read_json
from hilda_cache.drives.frame import Annotation, CameraView, Float64Array, Frame, FrameInfo, Points, PointsReport
from hilda_cache.drives.pandas_pickle import read_columns
from hilda_cache.drives.scenes import FolderDrive, check_time_order
from hilda_cache.drives.transforms import interpolate_se3, inverse_se3, se3, transform_points
from hilda_schema.errors import DriveError, UsageError
from hilda_schema.keys import Key

PANDAR64_IN_EGO_M = (0.0, 0.80, 1.85)
"""The Pandar64's optical centre: where the points' rays meet."""

PUBLISHED_IMAGE_SIZE_PX = (1920, 1080)

_CAMERAS = ("front_camera", "front_left_camera", "front_right_camera", "left_camera", "right_camera", "back_camera")
_LIDARS = {"pandar64": (0,), "pandargt": (1,), "both": (0, 1)}  # option -> values of column d
# Where both LiDARs see an object it has a box for each, of its own time: column cuboids.sensor_id, else -1.
_BOXES_OF = {"pandar64": (-1, 0), "pandargt": (-1, 1), "both": (-1, 0)}
_MAX_OFFSET_S = 1.0  # of a point's time stamp from the sweep's; a sweep takes 0.1 s
_INCOMPLETE = "download the scene again"


class PandaSet(FolderDrive):
    """PandaSet; see the module for the layout and the frames of reference.

    Intensity is the publisher's, 0 to 255; labels are the 42 classes of `annotations/semseg/classes.json`; point time
    stamps become offsets from the sweep's stamp, which lies at the sweep's end.

    Args:
        root: folder of the scenes (`001`, `002`, ...).
        lidar: "pandar64" (the spinning one), "pandargt" (the forward-facing one) or "both".

    Raises:
        UsageError: another `lidar`.
        DriveError: no scene in that folder.
    """

    dataset = "pandaset"
    version = ""
    OPTIONS: ClassVar[tuple[str, ...]] = ("lidar",)

    def __init__(self, root: Path, lidar: str = "pandar64") -> None:
        if lidar not in _LIDARS:
            raise UsageError(f"PandaSet has no LiDAR {lidar!r}", f"use lidar={' or '.join(_LIDARS)}")
        super().__init__(root, (path.parent for path in root.glob("*/lidar")), "lidar/ in it")
        self.lidar = lidar
        self.camera_names = tuple(
            name for name in _CAMERAS if any((scene / "camera" / name).is_dir() for scene in self.folders.values())
        )

    def read(self, info: FrameInfo) -> Frame:
        """Read the frame's points and labels; points with a non-finite value are dropped and counted.

        Raises:
            DriveError: a table is missing or damaged, or names another LiDAR.
        """
        with naming_frame(info.key):
            lidar_path, *label_paths = info.lidar_paths
            table = read_columns(lidar_path, ("x", "y", "z", "i", "t", "d"))
            label = _labels(label_paths[0], len(table["d"])) if label_paths else None
            if not np.isin(table["d"], _LIDARS["both"]).all():
                raise DriveError(f"{lidar_path}: column d names a LiDAR other than 0 and 1", _INCOMPLETE)
            chosen = np.isin(table["d"], _LIDARS[self.lidar])
            rows = np.stack([table[name].astype(np.float64) for name in "xyzit"], axis=1)
            kept = chosen & np.isfinite(rows).all(axis=1)
            points = _points(rows[kept], info, None if label is None else label[kept])
            return Frame(info, points, PointsReport(non_finite=int(chosen.sum() - kept.sum())))

    def annotations(self, scene: str) -> dict[str, Annotation]:
        """Boxes of every frame; points inside are not counted by the publisher.

        Raises:
            UsageError: there is no such scene.
            DriveError: the scene has no boxes, or a table is damaged.
        """
        frames, folder = self.frames(scene), self.folders[scene] / "annotations" / "cuboids"
        if not folder.is_dir():
            raise DriveError(f"{folder} is not there: the scene has no boxes", _INCOMPLETE)
        return {
            info.key.frame: _annotation(self._table(folder, k), info, _BOXES_OF[self.lidar])
            for k, info in enumerate(frames)
        }

    def _frames(self, scene: str, folder: Path) -> tuple[FrameInfo, ...]:
        stamps_ns = _stamps(folder / "lidar" / "timestamps.json")
        check_time_order(stamps_ns, folder / "lidar" / "timestamps.json")
        poses = _poses(folder / "lidar" / "poses.json", len(stamps_ns))
        cameras = [
            self._views(folder, name, stamps_ns, poses)
            for name in self.camera_names
            if (folder / "camera" / name).is_dir()
        ]
        tables = ["lidar"]
        if any((folder / "annotations" / "semseg").glob("*.pkl*")):
            tables.append("annotations/semseg")
        ego_SE3_lidar = se3(np.eye(3), PANDAR64_IN_EGO_M)
        return tuple(
            FrameInfo(
                key=Key(self.dataset, scene, f"{index:02d}"),
                stamp_ns=stamps_ns[index],
                lidar_paths=tuple(self._table(folder / table, index) for table in tables),
                ego_SE3_lidar=ego_SE3_lidar,
                world_SE3_ego=poses[index],
                cameras=tuple(views[index] for views in cameras),
            )
            for index in range(len(stamps_ns))
        )

    def _table(self, folder: Path, index: int) -> Path:
        packed, plain = (self.below(folder / f"{index:02d}{suffix}") for suffix in (".pkl.gz", ".pkl"))
        return plain if plain.exists() and not packed.exists() else packed

    def _views(
        self, folder: Path, name: str, sweep_stamps_ns: list[int], world_SE3_ego: list[Float64Array]
    ) -> list[CameraView]:
        """The camera's views, one per sweep: PandaSet numbers images and sweeps alike."""
        camera = folder / "camera" / name
        stamps_ns = _stamps(camera / "timestamps.json", len(sweep_stamps_ns))
        poses = _poses(camera / "poses.json", len(sweep_stamps_ns))
        paths = [self.below(camera / f"{index:02d}.jpg") for index in range(len(stamps_ns))]
        width_px, height_px = first_image_size_px(paths) or PUBLISHED_IMAGE_SIZE_PX
        intrinsics = _intrinsics(camera / "intrinsics.json")
        views = []
        for path, stamp_ns, world_SE3_cam in zip(paths, stamps_ns, poses, strict=True):
            ego = interpolate_se3(sweep_stamps_ns, world_SE3_ego, stamp_ns)
            cam_SE3_ego = inverse_se3(world_SE3_cam) @ ego
            views.append(CameraView(name, path, stamp_ns, intrinsics, cam_SE3_ego, ego, width_px, height_px))
        return views


def _points(rows: Float64Array, info: FrameInfo, label: NDArray[np.uint16] | None) -> Points:
    """Points in the LiDAR's frame from finite rows (N, 5) of world x, y, z [m], intensity and time stamp [s]."""
    path = info.lidar_paths[0]
    xyz_m = transform_points(inverse_se3(info.world_SE3_lidar), rows[:, :3])
    check_range(xyz_m, path)
    intensity, offset_s = rows[:, 3], rows[:, 4] - info.stamp_ns / 1e9
    if ((intensity < 0) | (intensity > 255)).any():
        raise DriveError(f"{path}: column i leaves 0..255", _INCOMPLETE)
    if (np.abs(offset_s) > _MAX_OFFSET_S).any():
        raise DriveError(f"{path}: points lie more than {_MAX_OFFSET_S} s from the sweep's time stamp", _INCOMPLETE)
    offset_ns = np.rint(offset_s * 1e9).astype(np.int32)
    return Points(xyz_m.astype(np.float32), intensity.astype(np.float32), time_offset_ns=offset_ns, label=label)


def _annotation(path: Path, info: FrameInfo, sensors: tuple[int, ...]) -> Annotation:
    centre = tuple(f"position.{axis}" for axis in "xyz")
    extent = tuple(f"dimensions.{axis}" for axis in "yxz")  # y is the length: a box of yaw 0 looks along y
    numbers = (*centre, *extent, "yaw", "cuboids.sensor_id")
    with naming_frame(info.key):
        table = read_columns(path, numbers, ("uuid", "label"))
        rows = np.flatnonzero(np.isin(table["cuboids.sensor_id"], sensors))
        columns = np.stack([table[name][rows].astype(np.float64) for name in (*centre, *extent, "yaw")], axis=1)
        if not np.isfinite(columns).all():
            raise DriveError(f"{path} has a box that is not finite", _INCOMPLETE)
        heading = columns[:, 6] + np.pi / 2
        world_SE3_box = np.tile(np.eye(4), (len(rows), 1, 1))
        world_SE3_box[:, 0, 0] = world_SE3_box[:, 1, 1] = np.cos(heading)
        world_SE3_box[:, 1, 0], world_SE3_box[:, 0, 1] = np.sin(heading), -np.sin(heading)
        world_SE3_box[:, :3, 3] = columns[:, :3]
        return Annotation(
            lidar_SE3_box=inverse_se3(info.world_SE3_lidar) @ world_SE3_box,
            size_m=columns[:, 3:6],
            category=tuple(map(str, table["label"][rows])),
            track=tuple(map(str, table["uuid"][rows])),
            points=None,
        )


def _labels(path: Path, points: int) -> NDArray[np.uint16]:
    label = read_columns(path, ("class",))["class"]
    if len(label) != points:
        raise DriveError(f"{path} labels {len(label)} points of a sweep of {points}", _INCOMPLETE)
    if label.dtype.kind not in "iu" or ((label < 0) | (label > np.iinfo(np.uint16).max)).any():
        raise DriveError(f"{path}: column class does not hold class ids", _INCOMPLETE)
    return label.astype(np.uint16)


def _stamps(path: Path, count: int | None = None) -> list[int]:
    """Time stamps in ns; the file has seconds to the microsecond, more than float64 can keep."""
    seconds = read_json(path)
    if not isinstance(seconds, list) or not all(isinstance(s, int | float) and 0 <= s < 2**33 for s in seconds):
        raise DriveError(f"{path} is not a list of time stamps in seconds", _INCOMPLETE)
    if count is not None and len(seconds) != count:
        raise DriveError(f"{path} has {len(seconds)} time stamps for {count} sweeps", _INCOMPLETE)
    return [round(s * 1e6) * 1000 for s in seconds]


def _poses(path: Path, count: int) -> list[Float64Array]:
    records = read_json(path)
    if not isinstance(records, list) or len(records) != count:
        raise DriveError(f"{path} is not a list of {count} poses, one per stamp of timestamps.json", _INCOMPLETE)
    return [
        se3(_numbers(record, "heading", "wxyz", where), _numbers(record, "position", "xyz", where), where)
        for index, record in enumerate(records)
        for where in [f"{path}, pose {index}"]
    ]


def _numbers(record: Any, field: str, names: str, where: str) -> list[float]:
    try:
        return [float(record[field][name]) for name in names]
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise DriveError(f"{where} has no {field} of {', '.join(names)}", _INCOMPLETE) from error


def _intrinsics(path: Path) -> Float64Array:
    try:
        fx, fy, cx, cy = (float(read_json(path)[name]) for name in ("fx", "fy", "cx", "cy"))
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise DriveError(f"{path} has no fx, fy, cx and cy", _INCOMPLETE) from error
    if fx <= 0 or fy <= 0:
        raise DriveError(f"{path}: focal lengths {fx} and {fy} px are not positive", _INCOMPLETE)
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
