"""SemanticKITTI, and the KITTI odometry benchmark that it labels.

    <root>/sequences/00/velodyne/000000.bin, ...
    <root>/sequences/00/labels/000000.label, ...                 for some sequences
    <root>/sequences/00/{image_2,image_3}/000000.png, ...        of the odometry benchmark, may be absent
    <root>/sequences/00/{calib.txt, poses.txt, times.txt}

Also read with `dataset/` above `sequences/`, as the archives unpack.

Frames of reference. ego is the LiDAR, and world is the frame in which `poses.txt` begins, turned to the LiDAR's axes:
the file holds poses of camera 0, so world_SE3_lidar = Tr^-1 pose Tr. Without `calib.txt` a sequence is LiDAR and
labels only. Labels are the lower 16 bits (class); the upper 16 (instance) are not kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from hilda_cache.drives.files import naming_frame, read_text
from hilda_cache.drives.frame import Float64Array, Frame, FrameInfo, PointsReport
from hilda_cache.drives.kitti import (
    FRAME_INTERVAL_NS,
    Calibration,
    image_names,
    numbered_sweeps,
    read_object_calibration,
    read_poses,
    read_velodyne,
    rectified_views,
)
from hilda_cache.drives.scenes import FolderDrive, check_time_order
from hilda_cache.drives.transforms import inverse_se3
from hilda_schema.errors import DriveError, UsageError
from hilda_schema.keys import Key

_CAMERAS = {"image_2": 2, "image_3": 3}  # the two colour cameras
_INCOMPLETE = "download the sequence again"
_POSES_REMEDY = 'fetch calib.txt and poses.txt, or go without poses (poses="identity")'


class SemanticKitti(FolderDrive):
    """SemanticKITTI; see the module for the layout and the frames of reference.

    Intensity is the reflectance, 0 to 1. Time stamps count from the sequence's begin (`times.txt`; without it,
    frames are 100 ms apart from 0 on).

    Args:
        root: the folder that holds `sequences/` or `dataset/sequences/`.
        poses: "identity" to go without poses (every frame at the world's origin: neither forecasting nor a merged
            cloud can use it); a sequence of a single scan needs none.

    Raises:
        DriveError: no sequence in that folder.
        UsageError: another value of `poses`.
    """

    dataset = "semantickitti"
    version = ""
    OPTIONS: ClassVar[tuple[str, ...]] = ("poses",)

    def __init__(self, root: Path, poses: str = "") -> None:
        if poses not in ("", "identity"):
            raise UsageError(f"poses={poses!r} is not known", 'leave it out, or say poses="identity"')
        scans = [path for above in ("", "dataset/") for path in root.glob(f"{above}sequences/*/velodyne")]
        super().__init__(root, (path.parent for path in scans), "velodyne/ in it below sequences/")
        self.poses = poses
        self.camera_names = tuple(
            name for name in _CAMERAS if any((scene / name).is_dir() for scene in self.folders.values())
        )

    def read(self, info: FrameInfo) -> Frame:
        """Read the frame's points and labels; points with a non-finite value are dropped and counted."""
        with naming_frame(info.key):
            points, dropped = read_velodyne(*info.lidar_paths)
            return Frame(info, points, PointsReport(non_finite=dropped))

    def _frames(self, scene: str, folder: Path) -> tuple[FrameInfo, ...]:
        sweeps = [self.below(path) for path in numbered_sweeps(folder / "velodyne")]
        stems = [path.stem for path in sweeps]
        calibration = read_object_calibration(path) if (path := folder / "calib.txt").exists() else None
        stamps_ns = _stamps(folder / "times.txt", stems)
        poses = self._poses(folder, stems, calibration)
        cameras = []
        for name in self.camera_names:
            if (images := folder / name).is_dir():
                if calibration is None:
                    raise DriveError(f"{images} cannot be projected on without {folder / 'calib.txt'}", _INCOMPLETE)
                paths = [self.below(images / file) for file in image_names(images, stems)]
                cameras.append(rectified_views(name, _CAMERAS[name], calibration, paths, stamps_ns, np.eye(4), poses))
        labels = folder / "labels"
        files = [(path, self.below(labels / f"{path.stem}.label")) if labels.is_dir() else (path,) for path in sweeps]
        return tuple(
            FrameInfo(
                key=Key(self.dataset, scene, stem),
                stamp_ns=stamps_ns[index],
                lidar_paths=files[index],
                ego_SE3_lidar=np.eye(4),
                world_SE3_ego=poses[index],
                cameras=tuple(views[index] for views in cameras),
            )
            for index, stem in enumerate(stems)
        )

    def _poses(self, folder: Path, stems: list[str], calibration: Calibration | None) -> list[Float64Array]:
        """`world_SE3_lidar` of every frame."""
        path = folder / "poses.txt"
        if self.poses == "identity" or (len(stems) == 1 and not path.exists()):
            return [np.eye(4)] * len(stems)
        if calibration is None:
            raise DriveError(f"{folder / 'calib.txt'} is not there, without which poses say nothing", _POSES_REMEDY)
        world_SE3_rect = read_poses(path)
        if len(world_SE3_rect) <= int(stems[-1]):
            raise DriveError(f"{path} has {len(world_SE3_rect)} poses, none for frame {stems[-1]}", _POSES_REMEDY)
        rect_SE3_lidar = calibration.rect_SE3_velo
        lidar_SE3_rect = inverse_se3(rect_SE3_lidar)
        return [lidar_SE3_rect @ world_SE3_rect[int(stem)] @ rect_SE3_lidar for stem in stems]


def _stamps(path: Path, stems: list[str]) -> list[int]:
    """Time stamps [ns] of the frames, from one number of seconds a line."""
    numbers = [int(stem) for stem in stems]
    if not path.exists():
        return [number * FRAME_INTERVAL_NS for number in numbers]
    lines = read_text(path).split()
    if len(lines) <= numbers[-1]:
        raise DriveError(f"{path} has {len(lines)} lines, none for frame {stems[-1]}", _INCOMPLETE)
    try:
        stamps_ns = [round(float(lines[number]) * 1e9) for number in numbers]
    except (ValueError, OverflowError) as error:
        raise DriveError(f"{path} holds other than seconds", _INCOMPLETE) from error
    check_time_order(stamps_ns, path)
    return stamps_ns
