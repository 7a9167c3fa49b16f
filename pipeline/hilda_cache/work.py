"""What one worker does with one part.

A frame's journey is one straight line:

    read -> project -> decode -> teach -> (part complete) encode -> write

Workers receive a request, a recipe and a `PartPlan`; they open the drive and load the teachers once and keep them.
Nothing here depends on which worker runs it, on how many there are or in which order parts come: same inputs, same
bytes.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilda_cache.drives import CameraView, Drive, Frame, FrameInfo, Points
from hilda_cache.geometry import project
from hilda_cache.ground import ground_mask
from hilda_cache.images import prepare, read_image
from hilda_cache.parts import PartOutcome, PartPlan, Sources, calibration_sha256, hash_sources, part_id
from hilda_cache.request import ExtractRequest, open_drive_once
from hilda_cache.teachers import Teacher, load_teacher
from hilda_cache.teachers.info import teacher_info
from hilda_cache.teachers.spec import TeacherSpec
from hilda_schema.content import FrameContent, Pairs, PartContent
from hilda_schema.errors import DriveError, MissingSensor, TeacherError
from hilda_schema.layout import LIDAR
from hilda_schema.manifest import Recipe, TeacherInfo
from hilda_schema.writer import existing_part, write_part


class Stopwatch:
    """Sums wall time per stage of the journey."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the body's time under `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


@lru_cache(maxsize=1)
def load_teachers_once(specs: tuple[TeacherSpec, ...]) -> tuple[Teacher, ...]:
    """The teachers, loaded once per process, on its GPU where it has one.

    On a CPU every process computes with one thread: two processes of one thread beat one of two, and a sum's order,
    hence its last bit, must not depend on how many workers share the machine.
    """
    if torch.cuda.is_available():
        return tuple(load_teacher(spec, device="cuda") for spec in specs)
    torch.set_num_threads(1)
    return tuple(load_teacher(spec, device="cpu") for spec in specs)


def teachers_of(request: ExtractRequest, recipe: Recipe, ignoring: frozenset[str] = frozenset()) -> tuple[Teacher, ...]:
    """The loaded teachers, in the recipe's precision.

    Args:
        request: which teachers.
        recipe: what they must be.
        ignoring: fields of the recipe's teachers in which they may differ.

    Raises:
        TeacherError: this worker's weights or grids are not those of the recipe.
    """
    teachers = load_teachers_once(request.teachers)
    for teacher, info in zip(teachers, recipe.teachers, strict=True):
        mine = teacher_info(teacher.card, info.precision, info.precision_reason)
        compared = TeacherInfo.model_fields.keys() - ignoring
        if fields := sorted(name for name in compared if getattr(mine, name) != getattr(info, name)):
            raise TeacherError(
                f"teacher {info.name!r} on this worker differs from the recipe in {', '.join(fields)}",
                "give every worker the same weights and the same version of hilda-lidar",
            )
        teacher.to_precision(getattr(torch, info.precision))
    return teachers


def extract_part(request: ExtractRequest, recipe: Recipe, store: str, plan: PartPlan) -> PartOutcome:
    """Make one part, or find it already made from the same inputs.

    Raises:
        HildaError: naming the file and frame; nothing has then been written under a final name.
    """
    watch = Stopwatch()
    drive = open_drive_once(request.drive)
    infos, cameras = drive.frames(plan.scene)[plan.start : plan.stop], recipe.dataset.cameras
    with watch.stage("hash"):
        sources = hash_sources(drive, infos, cameras)
    if sources.missing and request.missing == "fail":
        raise missing_sensor(infos, sources)
    calibration = calibration_sha256(infos, cameras)
    name = part_id(recipe, infos, plan.start, sources, calibration)
    if entry := existing_part(Path(store), name, recipe.digest()):
        return PartOutcome(entry, reused=True, images=0, seconds=dict(watch.seconds))

    teachers = teachers_of(request, recipe)
    skip = request.missing == "skip"
    frames = [make_frame(drive, teachers, cameras, info, sources, watch, skip=skip) for info in infos]
    content = PartContent(
        part=name,
        scene=plan.scene,
        camera_sizes_px=camera_sizes_px(infos, cameras),
        # Where each frame stands in its scene: a store of some frames only then knows which ones are neighbours.
        frames=tuple(replace(frame, position=plan.start + k) for k, frame in enumerate(frames)),
        sources=sources.sha256,
        calibration_sha256=calibration,
    )
    with watch.stage("write"):
        entry = write_part(Path(store), recipe, content)
    images = sum(len(cameras) - len(frame.absent.keys() - {LIDAR}) for frame in frames)
    return PartOutcome(entry, reused=False, images=images, seconds=dict(watch.seconds))


def missing_sensor(infos: tuple[FrameInfo, ...], sources: Sources) -> MissingSensor:
    """The error for sensor files that the tables name and the disk lacks."""
    more = f" and {len(sources.missing) - 1} more of this part" if len(sources.missing) > 1 else ""
    return MissingSensor(
        f"{sources.missing[0]}{more}: no such file (frames {infos[0].key} to {infos[-1].key})",
        "restore the files, or record the absences with --missing skip",
    )


def camera_sizes_px(infos: tuple[FrameInfo, ...], cameras: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Original image size of every stored camera; (0, 0) for one that these frames do not have.

    Raises:
        DriveError: a camera changes its size within the part.
    """
    sizes = dict.fromkeys(cameras, (0, 0))
    for info in infos:
        for view in info.cameras:
            if view.name not in sizes:
                continue
            size = (view.width_px, view.height_px)
            if sizes[view.name] not in ((0, 0), size):
                raise DriveError(f"{info.key}: camera {view.name} changes its image size to {size[0]}x{size[1]}")
            sizes[view.name] = size
    return sizes


def make_frame(
    drive: Drive,
    teachers: tuple[Teacher, ...],
    cameras: tuple[str, ...],
    info: FrameInfo,
    sources: Sources,
    watch: Stopwatch,
    *,
    skip: bool,
) -> FrameContent:
    """One frame's journey, up to what is written of it; `skip` records what cannot be read instead of raising."""
    with watch.stage("read"):
        frame, absent = read_frame(drive, info, sources, skip)
    with watch.stage("decode"):
        images, lost = read_images(drive, info, cameras, sources, skip)
    with watch.stage("project"):
        views = tuple(view for view in info.cameras if view.name in images)
        pairs = project_on(frame.points, replace(info, cameras=views), cameras)
        ground = ground_mask(frame.points.xyz_m)
    with watch.stage("teach"):
        tokens, global_tokens = teach(teachers, images, cameras)
    points = frame.points
    return FrameContent(
        key=info.key,
        stamp_ns=info.stamp_ns,
        world_SE3_lidar=info.world_SE3_lidar,
        world_SE3_ego=info.world_SE3_ego,
        xyz_m=points.xyz_m,
        intensity=points.intensity,
        ground=ground,
        pairs=pairs,
        tokens=tokens,
        global_tokens=global_tokens,
        points_dropped=frame.report.non_finite,
        time_offset_ns=points.time_offset_ns,
        ring=points.ring,
        label=points.label,
        absent=absent | lost,
    )


def read_frame(drive: Drive, info: FrameInfo, sources: Sources, skip: bool) -> tuple[Frame, dict[str, str]]:
    """Read a sweep; where absences are allowed, an unreadable one is empty and recorded, never zeros."""
    try:
        names = [path.relative_to(drive.root).as_posix() for path in info.lidar_paths]
        if lacking := [name for name in names if name in sources.missing]:
            raise MissingSensor(f"{lacking[0]}: no such file (frame {info.key})")
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
    """Decode one image, checked against the hash that names the part and the size that the projection assumes."""
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


def teach(
    teachers: tuple[Teacher, ...], images: dict[str, Tensor], cameras: tuple[str, ...]
) -> tuple[dict[tuple[str, str], NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Show every teacher the frame's images.

    Returns:
        (teacher, layer) -> (V, H, W, C), and teacher -> (V, D); NaN rows for cameras without an image.
    """
    rows = [number for number, camera in enumerate(cameras) if camera in images]
    tokens, global_tokens = {}, {}
    for teacher in teachers:
        card = teacher.card
        features = None
        if rows:
            batch = torch.stack([prepare(images[cameras[row]], card.preprocessing) for row in rows])
            features = teacher(batch)
        for layer in card.layers:
            grid = np.full((len(cameras), layer.height, layer.width, layer.channels), np.nan, np.float32)
            if features is not None:
                grid[rows] = features.layers[layer.name].permute(0, 2, 3, 1).float().cpu().numpy()
            tokens[card.name, layer.name] = grid
        if card.global_width:
            vectors = np.full((len(cameras), card.global_width), np.nan, np.float32)
            if features is not None and features.global_token is not None:
                vectors[rows] = features.global_token.float().cpu().numpy()
            global_tokens[card.name] = vectors
    return tokens, global_tokens
