"""What of a frame needs no teacher: its sweep read, its images decoded and prepared, its points projected.

All that touches the drive is here and in parts.py, so that it can be done ahead of the teachers (lanes.py).
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hilda_cache.drives import CameraView, Drive, Frame, FrameInfo, Points
from hilda_cache.geometry import project
from hilda_cache.ground import ground_mask
from hilda_cache.images import prepare, read_image
from hilda_cache.lanes import Stopwatch
from hilda_cache.parts import Sources
from hilda_cache.teachers import Preprocessing
from hilda_schema.content import FrameContent, Pairs
from hilda_schema.errors import DriveError, MissingSensor
from hilda_schema.layout import LIDAR

DRIVE = threading.Lock()
"""Held while a drive's reader runs: nobody asks it to be safe in several threads."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedFrame:
    """A frame before a teacher has seen it."""

    content: FrameContent  # without features
    rows: list[int]  # positions of the cameras that have an image
    inputs: dict[Preprocessing, Tensor]  # (len(rows), 3, h, w) float32; empty where there is no image


def load_frame(
    drive: Drive,
    cameras: tuple[str, ...],
    wanted: frozenset[Preprocessing],
    info: FrameInfo,
    sources: Sources,
    watch: Stopwatch,
    *,
    skip: bool,
) -> LoadedFrame:
    """All of a frame but its features, and its images as the teachers want them.

    Args:
        drive: the frame's.
        cameras: the store's.
        wanted: what the teachers want; each of them is made once.
        info: the frame.
        sources: the frame's files, hashed.
        watch: is told of every stage.
        skip: record what cannot be read instead of raising.

    Raises:
        DriveError: a file is missing, damaged, or changed since it was hashed.
    """
    with watch.stage("read"):
        frame, absent = read_frame(drive, info, sources, skip)
    with watch.stage("decode"):
        images, lost = read_images(drive, info, cameras, sources, skip)
        inputs = prepare_images(images, wanted)
    with watch.stage("project"):
        views = tuple(view for view in info.cameras if view.name in images)
        pairs = project_on(frame.points, replace(info, cameras=views), cameras)
        ground = ground_mask(frame.points.xyz_m)
    points = frame.points
    content = FrameContent(
        key=info.key,
        stamp_ns=info.stamp_ns,
        world_SE3_lidar=info.world_SE3_lidar,
        world_SE3_ego=info.world_SE3_ego,
        xyz_m=points.xyz_m,
        intensity=points.intensity,
        ground=ground,
        pairs=pairs,
        tokens={},
        global_tokens={},
        points_dropped=frame.report.non_finite,
        time_offset_ns=points.time_offset_ns,
        ring=points.ring,
        label=points.label,
        absent=absent | lost,
    )
    return LoadedFrame(content, [number for number, camera in enumerate(cameras) if camera in images], inputs)


def prepare_images(images: dict[str, Tensor], wanted: frozenset[Preprocessing]) -> dict[Preprocessing, Tensor]:
    """Make the inputs of teachers.

    Args:
        images: camera -> (H, W, 3) uint8 RGB.
        wanted: ways in which they are wanted.

    Returns:
        For each way (n, 3, h, w) of the n images, in pinned memory where a GPU will fetch them; nothing without images.
    """
    batches = {each: torch.stack([prepare(image, each) for image in images.values()]) for each in wanted if images}
    return {each: batch.pin_memory() for each, batch in batches.items()} if torch.cuda.is_available() else batches


def read_frame(drive: Drive, info: FrameInfo, sources: Sources, skip: bool) -> tuple[Frame, dict[str, str]]:
    """Read a sweep; where absences are allowed, an unreadable one is empty and recorded, never zeros.

    Raises:
        MissingSensor: `skip` is not set, and a file was not there when the drive was hashed.
        DriveError: `skip` is not set, and the sweep cannot be read.
    """
    try:
        names = [path.relative_to(drive.root).as_posix() for path in info.lidar_paths]
        if lacking := [name for name in names if name in sources.missing]:
            raise MissingSensor(f"{lacking[0]}: no such file (frame {info.key})")
        with DRIVE:
            return drive.read(info), {}
    except DriveError as error:
        if not skip:
            raise
        nothing = Points(np.zeros((0, 3), np.float32), np.zeros(0, np.float32))
        # A reason is stored and shared, so it names files below the drive only.
        return Frame(info, nothing), {LIDAR: error.message.replace(f"{drive.root}/", "")}


def read_images(
    drive: Drive, info: FrameInfo, cameras: tuple[str, ...], sources: Sources, skip: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Decode a frame's images.

    Returns:
        camera -> (H, W, 3) uint8 RGB, and camera -> reason for those that are not there.

    Raises:
        DriveError: as `read_view`, where `skip` is not set.
    """
    views = {view.name: view for view in info.cameras}
    images, absent = {}, {}
    for camera in cameras:
        if camera not in views:
            absent[camera] = "this frame has no such camera"
            continue
        try:
            images[camera] = read_view(drive, info, views[camera], sources)
        except DriveError as error:
            if not skip:
                raise
            absent[camera] = error.message.replace(f"{drive.root}/", "")
    return images, absent


def read_view(drive: Drive, info: FrameInfo, view: CameraView, sources: Sources) -> Tensor:
    """Decode one image, checked against the hash that names the part and the size that the projection assumes.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        MissingSensor: it was not there when the drive was hashed.
        DriveError: it has changed since, is damaged, or is not of its calibration's size.
    """
    name = view.image_path.relative_to(drive.root).as_posix()
    where = f"{name} (frame {info.key})"
    if name in sources.missing:
        raise MissingSensor(f"{name}: no such file (frame {info.key})")
    data = view.image_path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sources.sha256[name]:
        raise DriveError(f"{where} changed while it was being read", "run the command again when nobody writes to it")
    image = read_image(data, where)
    height, width = image.shape[:2]
    if (width, height) != (view.width_px, view.height_px):
        raise DriveError(
            f"{where} is {width}x{height} pixels, its calibration is for {view.width_px}x{view.height_px}",
            "use images of the size that the calibration was made for",
        )
    return image


def project_on(points: Points, info: FrameInfo, cameras: tuple[str, ...]) -> Pairs:
    """Project on the frame's own cameras, and number them as the store does."""
    pairs = project(points.xyz_m, info)
    numbers = np.array([cameras.index(view.name) for view in info.cameras], np.uint8)
    return replace(pairs, camera=numbers[pairs.camera] if len(pairs) else pairs.camera)
