"""KITTI raw recordings, synchronised and rectified.

    <root>/2011_09_26/calib_{cam_to_cam,velo_to_cam,imu_to_velo}.txt
    <root>/2011_09_26/2011_09_26_drive_0001_sync/{image_02,image_03}/{timestamps.txt, data/0000000000.png, ...}
    <root>/2011_09_26/2011_09_26_drive_0001_sync/velodyne_points/{timestamps.txt, data/0000000000.bin, ...}
    <root>/2011_09_26/2011_09_26_drive_0001_sync/oxts/data/0000000000.txt, ...

A scene is any folder with `velodyne_points/data`, one or two levels below root; its calibration lies in the folder
above it, in the format above or as one `*calib*.txt` in the format of the object benchmark.

Frames of reference. With `oxts/`, ego is the IMU and world is ego at the scene's first frame, through the Mercator map
of KITTI's development kit. With a pose file (`*pose*.txt` above the scene, 12 numbers a line, one line per frame
number), ego is the LiDAR, and the file is taken to hold its poses. Points and images of a frame are taken to be of
one moment: the cameras are triggered when the laser faces forward, and sweeps are not corrected for motion.

Time stamps are those of `timestamps.txt`, read as UTC; without that file, frames are 100 ms apart from 0 on.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import numpy as np

from hilda_cache.drives.files import contained, naming_frame, read_text
from hilda_cache.drives.frame import Float64Array, Frame, FrameInfo, PointsReport
from hilda_cache.drives.kitti import (
    FRAME_INTERVAL_NS,
    Calibration,
    image_names,
    numbered_sweeps,
    read_object_calibration,
    read_oxts_poses,
    read_poses,
    read_raw_calibration,
    read_velodyne,
    rectified_views,
)
from hilda_cache.drives.scenes import FolderDrive, check_time_order
from hilda_cache.drives.transforms import inverse_se3
from hilda_schema.errors import DriveError, UsageError
from hilda_schema.keys import Key

_CAMERAS = {"image_02": 2, "image_03": 3}  # the two colour cameras
_IDENTITY = "identity"
_POSES_REMEDY = 'fetch oxts/, name a file of LiDAR poses (poses=<file>), or go without (poses="identity")'


class KittiRaw(FolderDrive):
    """KITTI raw; see the module for the layout, the frames of reference and the time stamps.

    Intensity is the reflectance, 0 to 1; there are no labels.

    Args:
        root: the folder of the dates, or of one date.
        calib: calibration file in the object benchmark's format, relative to root, for all scenes; "" to find it.
        poses: file of LiDAR poses relative to root, for a drive of one scene; "identity" to go without (every
            frame at the world's origin: neither forecasting nor a merged cloud can use it); "" to find them.

    Raises:
        DriveError: no scene in that folder.
        UsageError: a pose file for more than one scene.
    """

    dataset = "kitti_raw"
    version = ""
    OPTIONS: ClassVar[tuple[str, ...]] = ("calib", "poses")

    def __init__(self, root: Path, calib: str = "", poses: str = "") -> None:
        sweeps = [path for depth in ("*", "*/*") for path in root.glob(f"{depth}/velodyne_points/data")]
        super().__init__(root, (path.parent.parent for path in sweeps), "velodyne_points/data in it")
        if poses not in ("", _IDENTITY) and len(self.folders) > 1:
            raise UsageError(f"{poses} cannot hold the poses of {len(self.folders)} scenes", "open a folder of one")
        self.calib, self.poses = calib, poses
        self.camera_names = tuple(
            name for name in _CAMERAS if any((scene / name / "data").is_dir() for scene in self.folders.values())
        )

    def read(self, info: FrameInfo) -> Frame:
        """Read the frame's points; points with a non-finite value are dropped and counted."""
        with naming_frame(info.key):
            points, dropped = read_velodyne(info.lidar_paths[0])
            return Frame(info, points, PointsReport(non_finite=dropped))

    def _frames(self, scene: str, folder: Path) -> tuple[FrameInfo, ...]:
        if scene.endswith("_extract"):
            raise DriveError(f"{folder} holds images that are not rectified", "download the scene's _sync archive")
        sweeps = [self.below(path) for path in numbered_sweeps(folder / "velodyne_points" / "data")]
        stems = [path.stem for path in sweeps]
        calibration = self._calibration(folder)
        ego_SE3_lidar, poses = self._poses(folder, stems, calibration)
        stamps_ns = _stamps(folder / "velodyne_points" / "timestamps.txt", stems)
        cameras = []
        for name in self.camera_names:
            if (images := folder / name / "data").is_dir():
                paths = [self.below(images / file) for file in image_names(images, stems)]
                times = _stamps(folder / name / "timestamps.txt", stems)
                cameras.append(rectified_views(name, _CAMERAS[name], calibration, paths, times, ego_SE3_lidar, poses))
        return tuple(
            FrameInfo(
                key=Key(self.dataset, scene, stem),
                stamp_ns=stamps_ns[index],
                lidar_paths=(sweeps[index],),
                ego_SE3_lidar=ego_SE3_lidar,
                world_SE3_ego=poses[index],
                cameras=tuple(views[index] for views in cameras),
            )
            for index, stem in enumerate(stems)
        )

    def _calibration(self, folder: Path) -> Calibration:
        if self.calib:
            return read_object_calibration(contained(self.root, self.calib))
        if (folder.parent / "calib_cam_to_cam.txt").exists():
            return read_raw_calibration(folder.parent)
        return read_object_calibration(_only(folder.parent, "calib"))

    def _poses(
        self, folder: Path, stems: list[str], calibration: Calibration
    ) -> tuple[Float64Array, list[Float64Array]]:
        """`ego_SE3_lidar`, and `world_SE3_ego` of every frame."""
        if self.poses == _IDENTITY:
            return np.eye(4), [np.eye(4)] * len(stems)
        packets = folder / "oxts" / "data"
        if not self.poses and packets.is_dir():
            if calibration.velo_SE3_imu is None:
                raise DriveError(f"{folder.parent} does not say where the IMU of {packets} sits", _POSES_REMEDY)
            return inverse_se3(calibration.velo_SE3_imu), read_oxts_poses(
                [self.below(packets / f"{stem}.txt") for stem in stems]
            )
        path = contained(self.root, self.poses) if self.poses else _only(folder.parent, "pose")
        world_SE3_lidar = read_poses(path)
        if len(world_SE3_lidar) <= int(stems[-1]):
            raise DriveError(f"{path} has {len(world_SE3_lidar)} poses, none for frame {stems[-1]}", _POSES_REMEDY)
        return np.eye(4), [world_SE3_lidar[int(stem)] for stem in stems]


def _only(folder: Path, word: str) -> Path:
    """The one text file with that word in its name."""
    found = sorted(folder.glob(f"*{word}*.txt"))
    if len(found) == 1:
        return found[0]
    remedy = _POSES_REMEDY if word == "pose" else "name the calibration file: calib=<file>"
    names = ", ".join(path.name for path in found) or "none"
    raise DriveError(f"{folder} must hold one *{word}*.txt, and holds {names}", remedy)


def _stamps(path: Path, stems: list[str]) -> list[int]:
    """Time stamps [ns] of the frames from a file with one "2011-09-26 13:02:25.964389445" per frame number."""
    numbers = [int(stem) for stem in stems]
    if not path.exists():
        return [number * FRAME_INTERVAL_NS for number in numbers]
    lines = read_text(path).splitlines()
    if len(lines) <= numbers[-1]:
        raise DriveError(f"{path} has {len(lines)} lines, none for frame {stems[-1]}", "download the scene again")
    stamps_ns = []
    for number in numbers:
        seconds, _, fraction = lines[number].strip().partition(".")
        try:
            whole = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
            stamps_ns.append(int(whole.timestamp()) * 10**9 + int(fraction[:9].ljust(9, "0")))
        except (ValueError, OverflowError) as error:
            raise DriveError(f"{path}, line {number + 1} is not a time stamp", "download the scene again") from error
    check_time_order(stamps_ns, path)
    return stamps_ns
