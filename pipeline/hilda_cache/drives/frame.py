"""What every dataset reader yields: the same frozen dataclasses, whatever the raw format was.

Frames of reference (`a_SE3_b` takes points in b to points in a; metres, right-handed):
    lidar   the LiDAR's own frame, the one in which points are stored and the student is trained
    ego     the vehicle, at the time stamp named beside it (it moves between a sweep and an image)
    world   fixed while a scene lasts
    cam     OpenCV camera: x right, y down, z forward

Pixels: (u, v) with pixel centres at integers, so an image spans [-0.5, width_px - 0.5) x [-0.5, height_px - 0.5).

Legend: N points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hilda_schema.errors import UsageError
from hilda_schema.keys import Key

Float64Array = NDArray[np.float64]

WITH_BOXES = ("argoverse2", "nuscenes", "pandaset")


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """One LiDAR sweep in its own frame. Every array has N rows, in the order of the raw file."""

    xyz_m: NDArray[np.float32]  # (N, 3) LiDAR frame; finite
    intensity: NDArray[np.float32]  # (N,) in the dataset's own scale
    time_offset_ns: NDArray[np.int32] | None = None  # (N,) from the sweep's stamp
    ring: NDArray[np.uint8] | None = None  # (N,) laser index
    label: NDArray[np.uint16] | None = None  # (N,) the dataset's own class ids

    def __len__(self) -> int:
        return len(self.xyz_m)


@dataclass(frozen=True, slots=True, eq=False)
class CameraView:
    """One camera image belonging to a sweep, with all that is needed to project on it; the image is not opened."""

    name: str
    image_path: Path  # absolute, inside the drive's root
    stamp_ns: int
    intrinsics: Float64Array  # K (3, 3), pixels
    cam_SE3_ego: Float64Array  # (4, 4) at the camera's own time stamp
    world_SE3_ego: Float64Array  # (4, 4) at the camera's own time stamp
    width_px: int
    height_px: int
    distortion: tuple[float, ...] = ()  # OpenCV order (k1, k2, p1, p2, k3); empty for rectified images


@dataclass(frozen=True, slots=True, eq=False)
class FrameInfo:
    """Everything about a frame that the tables say: no sensor file has been read yet."""

    key: Key
    stamp_ns: int
    lidar_paths: tuple[Path, ...]  # absolute; all files that `Drive.points` reads (points, labels)
    ego_SE3_lidar: Float64Array  # (4, 4)
    world_SE3_ego: Float64Array  # (4, 4) at the sweep's time stamp
    cameras: tuple[CameraView, ...]  # in the drive's fixed camera order

    @property
    def world_SE3_lidar(self) -> Float64Array:
        """(4, 4) pose of the LiDAR at the sweep's time stamp."""
        return self.world_SE3_ego @ self.ego_SE3_lidar


@dataclass(frozen=True, slots=True)
class PointsReport:
    """What a reader left out of a sweep, counted so that nothing vanishes in silence."""

    non_finite: int = 0  # points with a NaN or infinite coordinate or intensity, dropped


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame with its points read."""

    info: FrameInfo
    points: Points
    report: PointsReport = PointsReport()


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """The boxes of one annotated frame, M of them."""

    lidar_SE3_box: Float64Array  # (M, 4, 4); a box's x points to its front, its centre is the origin
    size_m: Float64Array  # (M, 3) length (along x), width, height
    category: tuple[str, ...]  # (M,) the dataset's own names
    track: tuple[str, ...]  # (M,) the same object in all frames of the scene
    points: NDArray[np.int64] | None  # (M,) LiDAR points inside, where the publisher counts them


class Drive(ABC):
    """A dataset on disk, read from its raw files alone.

    Opening one reads tables and calibration, never sensor files. Readers are cheap to open in every worker process
    and are identified there by (dataset, root, options), so they are never pickled.

    Raises (all methods): DriveError naming the file, and the frame where there is one.
    """

    dataset: str  # "pandaset", "nuscenes", ...
    version: str  # "v1.0-mini", "" where the dataset has none
    root: Path
    camera_names: tuple[str, ...]  # the fixed order; a frame's cameras are a subsequence of it

    @abstractmethod
    def scenes(self) -> tuple[str, ...]:
        """Names of all scenes, sorted."""

    @abstractmethod
    def frames(self, scene: str) -> tuple[FrameInfo, ...]:
        """The scene's frames in time order; UsageError for a scene that is not there, naming the nearest."""

    @abstractmethod
    def read(self, info: FrameInfo) -> Frame:
        """Read the frame's points and labels; points with a non-finite value are dropped and counted."""

    def annotations(self, scene: str) -> dict[str, Annotation]:
        """Boxes of the scene's annotated frames, by the frame's name.

        Raises:
            UsageError: this reader knows of no boxes; or there is no such scene.
            DriveError: the annotations are missing or damaged.
        """
        raise UsageError(f"{self.dataset} has no boxes that are read here", f"they are of {', '.join(WITH_BOXES)}")
