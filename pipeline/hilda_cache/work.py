"""What one worker does with one part.

A frame's journey is one straight line:

    read -> decode -> project -> teach -> (part complete) encode -> write

Workers receive a request, a recipe and a `PartPlan`; they open the drive and load the teachers once and keep them.
While the model sees a frame, the next ones are loaded, and the part before is encoded and written (lanes.py).
Nothing here depends on which worker runs it, on how many there are or in which order parts come: same inputs, same
bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilda_cache.drives import Drive, FrameInfo
from hilda_cache.frames import DRIVE, LoadedFrame, load_frame
from hilda_cache.heap import give_back_freed_memory, keep_freed_memory
from hilda_cache.lanes import WAIT_LOAD, WAIT_STORE, Stopwatch, lanes
from hilda_cache.parts import PartOutcome, PartPlan, Sources, calibration_sha256, hash_sources, part_id
from hilda_cache.request import ExtractRequest, open_drive_once
from hilda_cache.teachers import Preprocessing, Teacher, load_teacher
from hilda_cache.teachers.info import teacher_info
from hilda_cache.teachers.spec import TeacherSpec
from hilda_schema.content import FrameContent, PartContent
from hilda_schema.errors import DriveError, MissingSensor, TeacherError
from hilda_schema.layout import LIDAR
from hilda_schema.manifest import Recipe, TeacherInfo
from hilda_schema.writer import existing_part, write_part


@lru_cache(maxsize=1)
def load_teachers_once(specs: tuple[TeacherSpec, ...]) -> tuple[Teacher, ...]:
    """The teachers, loaded once per process, on its GPU where it has one.

    On a CPU every process computes with one thread: two processes of one thread beat one of two, and a sum's order,
    hence its last bit, must not depend on how many workers share the machine.
    """
    device = compute_device()
    if device == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    return tuple(load_teacher(spec, device) for spec in specs)


def compute_device() -> str:
    """Where this process's teachers run: the n-th worker of a machine has its n-th GPU."""
    if not torch.cuda.is_available():
        return "cpu"
    from distributed import get_worker

    try:
        number = int(get_worker().name)
    except ValueError:  # no worker, or one that somebody named; whoever starts those gives each its own GPU
        number = 0
    return f"cuda:{number % torch.cuda.device_count()}"


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
    watch, began, lane = Stopwatch(), time.perf_counter(), lanes()
    part = lane.load(lambda: begin_part(request, recipe, plan, watch))
    if entry := existing_part(Path(store), part.name, recipe.digest()):
        return PartOutcome(entry, True, 0, dict(watch.seconds), dict(watch.cpu_seconds))
    cameras, skip = recipe.dataset.cameras, request.missing == "skip"
    sizes, wanted = camera_sizes_px(part.infos, cameras), frozenset(map(preprocessing_of, recipe.teachers))
    load = partial(load_frame, part.drive, cameras, wanted, sources=part.sources, watch=watch, skip=skip)
    loading = lane.load_ahead(load, part.infos)
    with ExitStack() as stored, closing(loading):
        with lane.teaching(watch, began):
            with watch.stage("start"):
                teachers = teachers_of(request, recipe)
            frames = teach_frames(teachers, loading, len(cameras), watch)
            with watch.stage(WAIT_STORE):
                stored.enter_context(lane.storing)
        content = PartContent(
            part=part.name,
            scene=plan.scene,
            camera_sizes_px=sizes,
            # Where each frame stands in its scene: a store of some frames only then knows which ones are neighbours.
            frames=tuple(replace(frame, position=plan.start + k) for k, frame in enumerate(frames)),
            sources=part.sources.sha256,
            calibration_sha256=part.calibration_sha256,
        )
        with watch.stage("write"):
            entry = write_part(Path(store), recipe, content, encoding=lambda: watch.stage("encode"))
    images = sum(len(cameras) - len(frame.absent.keys() - {LIDAR}) for frame in frames)
    del frames, content
    give_back_freed_memory()
    return PartOutcome(entry, False, images, dict(watch.seconds), dict(watch.cpu_seconds))


@dataclass(frozen=True, slots=True)
class BegunPart:
    """A part of which it is known what it is made from, and hence what it is called."""

    name: str
    drive: Drive
    infos: tuple[FrameInfo, ...]
    sources: Sources
    calibration_sha256: str


def begin_part(request: ExtractRequest, recipe: Recipe, plan: PartPlan, watch: Stopwatch) -> BegunPart:
    """Hash all that a part is made from.

    Raises:
        MissingSensor: a file is missing, and absences are not allowed.
        DriveError: the drive or a file cannot be read.
    """
    with DRIVE:
        drive = open_drive_once(request.drive)
        infos = drive.frames(plan.scene)[plan.start : plan.stop]
    with watch.stage("hash"):
        sources = hash_sources(drive, infos, recipe.dataset.cameras)
    if sources.missing and request.missing == "fail":
        raise missing_sensor(infos, sources)
    calibration = calibration_sha256(infos, recipe.dataset.cameras)
    return BegunPart(part_id(recipe, infos, plan.start, sources, calibration), drive, infos, sources, calibration)


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


def preprocessing_of(info: TeacherInfo) -> Preprocessing:
    """How a recipe says that a teacher's images are made; `teachers_of` sees to it that the teacher says the same."""
    return Preprocessing(info.image_height_px, info.image_width_px, info.mean, info.std)


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
    wanted = frozenset(teacher.card.preprocessing for teacher in teachers)
    loaded = load_frame(drive, cameras, wanted, info, sources, watch, skip=skip)
    with watch.stage("teach"):
        return teach(teachers, loaded, len(cameras))()


def teach_frames(
    teachers: tuple[Teacher, ...], loading: Iterable[Future[LoadedFrame]], cameras: int, watch: Stopwatch
) -> list[FrameContent]:
    """Show frames to the teachers as they come.

    A frame's features are put in order after the next one was shown: meanwhile a GPU has that to do.
    """
    frames, before = [], None
    for future in loading:
        with watch.stage(WAIT_LOAD):
            loaded = future.result()
        with watch.stage("teach"):
            shown = teach(teachers, loaded, cameras)
            if before is not None:
                frames.append(before())
            before = shown
    if before is not None:
        with watch.stage("teach"):
            frames.append(before())
    return frames


def teach(teachers: tuple[Teacher, ...], loaded: LoadedFrame, cameras: int) -> Callable[[], FrameContent]:
    """Show a frame's images to every teacher.

    Args:
        teachers: all of them.
        loaded: the frame.
        cameras: V, of the store.

    Returns:
        A function that waits for what the teachers say (a GPU works on it meanwhile) and gives the frame with it:
        tokens (V, H, W, C) and global tokens (V, D), NaN for cameras without an image.
    """
    device = compute_device()
    grids: dict[tuple[str, str], Tensor] = {}
    vectors: dict[str, Tensor] = {}
    for teacher in teachers if loaded.rows else ():
        features = teacher(loaded.inputs[teacher.card.preprocessing].to(device, non_blocking=True))
        for name, grid in features.layers.items():
            grids[teacher.card.name, name] = _fetch(grid.permute(0, 2, 3, 1))
        if features.global_token is not None:
            vectors[teacher.card.name] = _fetch(features.global_token)
    there = None if device == "cpu" else torch.cuda.current_stream(device).record_event()

    def taught() -> FrameContent:
        if there is not None:
            there.synchronize()
        tokens, global_tokens = {}, {}
        for card in (teacher.card for teacher in teachers):
            for layer in card.layers:
                key, shape = (card.name, layer.name), (layer.height, layer.width, layer.channels)
                tokens[key] = _of_all_cameras(grids.get(key), loaded.rows, (cameras, *shape))
            if card.global_width:
                found = vectors.get(card.name)
                global_tokens[card.name] = _of_all_cameras(found, loaded.rows, (cameras, card.global_width))
        return replace(loaded.content, tokens=tokens, global_tokens=global_tokens)

    return taught


def _fetch(tensor: Tensor) -> Tensor:
    """The tensor in the CPU's memory; of one on a GPU, a copy that has only begun."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _of_all_cameras(values: Tensor | None, rows: list[int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array with the values in its rows, and NaN in the others."""
    whole = np.full(shape, np.nan, np.float32)
    if values is not None:
        whole[rows] = values.numpy()
    return whole
