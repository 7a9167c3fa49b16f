"""Whether a drive's reader says what extraction relies on. For a user's own reader, and for ours.

    from hilda_cache.drives.conformance import check_drive

    assert check_drive(MyDrive(root)) == []

Everything is looked at through the interface: frames sorted in time, keys that name one frame, poses that are rigid,
points that are finite, cameras named as the drive names them, projections that fall where a camera looks.

Legend: N points.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.files import image_size_px
from hilda_cache.drives.frame import CameraView, Drive, Frame, FrameInfo
from hilda_cache.geometry import project
from hilda_schema.errors import DriveError, HildaError, UsageError
from hilda_schema.keys import Key

POSE_TOLERANCE = 1e-3  # of R R^T from the identity: matrices printed with a few digits pass
MAX_SPEED_M_S = 100.0  # of the vehicle between frames; poses in millimetres, or out of order, are far beyond it
MIN_SEEN = 0.001  # share of a frame's points that any camera sees; swapped axes give none
NO_SCENE = "no scene is called this"

_COLUMNS = {"xyz_m": "float32", "intensity": "float32", "time_offset_ns": "int32", "ring": "uint8", "label": "uint16"}


def check_drive(drive: Drive, scenes: int = 2, frames: int = 3) -> list[str]:
    """Check a reader on a drive.

    Args:
        drive: opened.
        scenes: how many scenes are looked into, the first ones.
        frames: how many frames of each are read, spread evenly; the tables of all are checked.

    Returns:
        What is wrong, one sentence each, naming scene, frame and camera; empty where nothing is.
    """
    problems = list(_check_names(drive))
    try:
        names = drive.scenes()
        for scene in names[:scenes]:
            infos = drive.frames(scene)
            said_wrongly = list(_check_scene(drive, scene, infos))
            problems += said_wrongly
            chosen = sorted({round(k) for k in np.linspace(0, len(infos) - 1, min(frames, len(infos)))})
            for index in chosen:
                problems += _check_frame(drive, infos[index], projected=not said_wrongly)
        problems += _check_unknown_scene(drive)
    except HildaError as error:
        problems.append(f"{type(error).__name__}: {error.message}")
    return problems


def _check_names(drive: Drive) -> Iterator[str]:
    if not drive.dataset or not isinstance(drive.version, str):
        yield "dataset is a name, and version a text"
    if not isinstance(drive.root, Path) or not drive.root.is_absolute():
        yield f"root {drive.root} is not an absolute Path"
    if not isinstance(drive.camera_names, tuple) or len(set(drive.camera_names)) != len(drive.camera_names):
        yield f"camera_names {drive.camera_names} is not a tuple of different names"
    scenes = drive.scenes()
    if not isinstance(scenes, tuple) or list(scenes) != sorted(set(scenes)) or not scenes:
        yield "scenes() is not a sorted tuple of different names, at least one"


def _check_unknown_scene(drive: Drive) -> Iterator[str]:
    try:
        drive.frames(NO_SCENE)
        yield "frames() of a scene that is not there gave something, not UsageError"
    except UsageError:
        return


def _check_scene(drive: Drive, scene: str, infos: tuple[FrameInfo, ...]) -> Iterator[str]:
    """What the tables of a scene say."""
    if not infos:
        yield f"{scene}: has no frame"
    for before, after in pairwise(infos):
        if after.stamp_ns <= before.stamp_ns:
            yield f"{after.key}: is not later than the frame before it"
            continue
        moved_m = float(np.linalg.norm((after.world_SE3_ego - before.world_SE3_ego)[:3, 3]))
        seconds = (after.stamp_ns - before.stamp_ns) / 1e9
        if moved_m > MAX_SPEED_M_S * seconds + 1:
            yield f"{after.key}: the vehicle moved {moved_m:.0f} m in {seconds:.2f} s: are poses metres, stamps ns?"
    if len({str(info.key) for info in infos}) != len(infos):
        yield f"{scene}: two frames have one key"
    for info in infos:
        if info.key != Key(drive.dataset, scene, info.key.frame) or not info.key.frame:
            yield f"{info.key}: a key is the drive's dataset, the scene, and a frame"
        for name in ("ego_SE3_lidar", "world_SE3_ego"):
            yield from (f"{info.key}: {name} {what}" for what in pose_problems(getattr(info, name)))
        yield from _check_cameras(drive, info)


def _check_cameras(drive: Drive, info: FrameInfo) -> Iterator[str]:
    order = [drive.camera_names.index(view.name) for view in info.cameras if view.name in drive.camera_names]
    if len(order) != len(info.cameras) or order != sorted(set(order)):
        yield f"{info.key}: cameras {[view.name for view in info.cameras]} are not those of camera_names in their order"
    for path in (*info.lidar_paths, *(view.image_path for view in info.cameras)):
        if not path.is_absolute() or not path.is_relative_to(drive.root):
            yield f"{info.key}: {path} is not an absolute path below root"
    if not info.lidar_paths:
        yield f"{info.key}: lidar_paths names no file, so that a changed sweep would not be noticed"
    for view in info.cameras:
        where = f"{info.key}, {view.name}"
        for name in ("cam_SE3_ego", "world_SE3_ego"):
            yield from (f"{where}: {name} {what}" for what in pose_problems(getattr(view, name)))
        yield from (f"{where}: {what}" for what in _intrinsics_problems(view))


def pose_problems(pose: NDArray[Any]) -> Iterator[str]:
    """What keeps an array from being a rigid transform, (4, 4) float64, in words."""
    if not isinstance(pose, np.ndarray) or pose.shape != (4, 4) or pose.dtype != np.float64:
        yield "is not a (4, 4) float64 array"
        return
    rotation = pose[:3, :3]
    if not np.isfinite(pose).all() or (pose[3] != (0, 0, 0, 1)).any():
        yield "is not finite, or its last row is not 0 0 0 1 (is it transposed?)"
    elif np.abs(rotation @ rotation.T - np.eye(3)).max() > POSE_TOLERANCE or np.linalg.det(rotation) < 0:
        yield "has a rotation that is not orthonormal and right-handed"


def _intrinsics_problems(view: CameraView) -> Iterator[str]:
    K = view.intrinsics
    if K.shape != (3, 3) or not np.isfinite(K).all() or (K[2] != (0, 0, 1)).any() or min(K[0, 0], K[1, 1]) <= 0:
        yield "intrinsics are not a finite K with positive focal lengths and last row 0 0 1"
    elif not (0 < K[0, 2] < view.width_px and 0 < K[1, 2] < view.height_px):
        yield f"the principal point {K[0, 2]:.0f}, {K[1, 2]:.0f} is outside {view.width_px} x {view.height_px} px"
    if len(view.distortion) not in (0, 5):
        yield f"distortion has {len(view.distortion)} coefficients, not none or (k1, k2, p1, p2, k3)"


def _check_frame(drive: Drive, info: FrameInfo, *, projected: bool) -> Iterator[str]:
    """What a frame's files say, and where its points fall if the tables allow it to be asked."""
    try:
        frame = drive.read(info)
    except DriveError as error:
        yield f"{info.key}: cannot be read: {error.message}"
        return
    if str(frame.info.key) != str(info.key):
        yield f"{info.key}: read() gave the frame {frame.info.key}"
    problems = list(_points_problems(frame))
    yield from (f"{info.key}: {what}" for what in problems)
    if problems:
        return
    again = drive.read(info)
    if not all(np.array_equal(getattr(again.points, name), getattr(frame.points, name)) for name in ("xyz_m", "label")):
        yield f"{info.key}: read twice, its points differ"
    for view in info.cameras:
        yield from (f"{info.key}, {view.name}: {what}" for what in _image_problems(view))
    if projected and info.cameras:
        yield from _projection_problems(frame)


def _points_problems(frame: Frame) -> Iterator[str]:
    points, N = frame.points, len(frame.points)
    for name, dtype in _COLUMNS.items():
        values = getattr(points, name)
        if values is None:
            continue
        shape = (N, 3) if name == "xyz_m" else (N,)
        if values.dtype != dtype or values.shape != shape:
            yield f"points.{name} is {values.dtype} {values.shape}, not {dtype} {shape}"
        elif not np.isfinite(values).all():
            yield f"points.{name} has values that are not finite: drop such points, and count them"
    if N == 0:
        yield "has no point"
    elif float(np.median(np.abs(points.xyz_m).max(axis=1))) > 1000:
        yield "half of its points are beyond 1 km: are they metres, in the LiDAR's frame?"
    if frame.report.non_finite < 0:
        yield "report.non_finite is negative"


def _image_problems(view: CameraView) -> Iterator[str]:
    if not view.image_path.is_file():
        return  # absent images are recorded by extraction, and no reader's fault
    size = image_size_px(view.image_path)
    if size != (view.width_px, view.height_px):
        yield f"its image is {size[0]} x {size[1]} px, the reader says {view.width_px} x {view.height_px}"


def _projection_problems(frame: Frame) -> Iterator[str]:
    pairs = project(frame.points.xyz_m, frame.info)
    if len(np.unique(pairs.point)) < MIN_SEEN * len(frame.points):
        yield f"{frame.info.key}: no camera sees its points: are cam_SE3_ego and the camera's axes (z forward) right?"
