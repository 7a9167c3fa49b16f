"""What a part holds before it is encoded: plain arrays, frame by frame.

Legend: N points, P point-camera pairs, V cameras, H x W token grid, C channels, D width of the global token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hilda_schema.keys import Key


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Which point is seen at which pixel of which camera; sorted by camera, then by point."""

    point: NDArray[np.uint32]  # (P,) row of the point
    camera: NDArray[np.uint8]  # (P,) index into the store's cameras
    uv_px: NDArray[np.float64]  # (P, 2) original image pixels, (u, v), pixel centres at integers
    depth_m: NDArray[np.float32]  # (P,) along the optical axis
    visible: NDArray[np.bool_]  # (P,) False where a nearer point of the same sweep hides it

    def __len__(self) -> int:
        return len(self.point)


@dataclass(frozen=True, slots=True, eq=False)
class FrameContent:
    """One frame, ready to be written."""

    key: Key
    stamp_ns: int
    world_SE3_lidar: NDArray[np.float64]  # (4, 4)
    world_SE3_ego: NDArray[np.float64]  # (4, 4)
    xyz_m: NDArray[np.float32]  # (N, 3) LiDAR frame
    intensity: NDArray[np.float32]  # (N,)
    ground: NDArray[np.bool_]  # (N,)
    pairs: Pairs
    tokens: dict[tuple[str, str], NDArray[np.float32]]  # (teacher, layer) -> (V, H, W, C); NaN for absent cameras
    global_tokens: dict[str, NDArray[np.float32]]  # teacher -> (V, D); NaN for absent cameras
    points_dropped: int = 0
    position: int | None = None  # place in the scene as the drive lists it: tells neighbours in time from gaps
    time_offset_ns: NDArray[np.int32] | None = None  # (N,)
    ring: NDArray[np.uint8] | None = None  # (N,)
    label: NDArray[np.uint16] | None = None  # (N,)
    absent: dict[str, str] = field(default_factory=dict)  # camera, or "lidar" -> reason


@dataclass(frozen=True, slots=True, eq=False)
class PartContent:
    """A run of consecutive frames of one scene: the unit of work, of writing and of sharing."""

    part: str
    scene: str
    camera_sizes_px: dict[
        str, tuple[int, int]
    ]  # (width, height) in the order of the camera axis; (0, 0): no such camera
    frames: tuple[FrameContent, ...]
    sources: dict[str, str]
    calibration_sha256: str
