"""What an extraction will cost, said before the first hour is spent: parts, images, bytes, files, time, does it fit.

Bytes follow from the layers' shapes and from the points and pairs of a few sampled frames; time follows from a short
probe on the drive's own images.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilda_cache.drives import Drive
from hilda_cache.parts import PartPlan, plan_parts
from hilda_cache.recipe import resolve_recipe, sample_images
from hilda_cache.request import ExtractRequest
from hilda_cache.work import load_teachers_once, open_drive_once, project_on
from hilda_schema.errors import UsageError
from hilda_schema.manifest import Recipe, TeacherInfo

SAMPLED_FRAMES = 3
PROBE_S = 3.0
RESERVE = 0.05  # of the disk that must stay free: full disks are slow, and others write too
POINT_BYTES = 12 + 4 + 1  # xyz_m, intensity, ground
PAIR_BYTES = 4 + 1 + 4 + 2 + 1  # point, camera, uv, depth_m, visible
METADATA_FILES = 3  # manifest.json, frames.parquet, zarr.json of the store


@dataclass(frozen=True, slots=True)
class Plan:
    """The cost of an extraction; every number is for the whole of it."""

    parts: int
    frames: int
    images: int
    missing_images: int
    points_per_frame: float
    pairs_per_frame: float
    bytes_by_encoding: dict[str, int]
    encoding: str
    files: int
    free_bytes: int
    seconds_per_image: float
    workers: int
    hours: float

    @property
    def fits(self) -> bool:
        """Whether the chosen encoding leaves the disk its reserve."""
        return self.bytes_by_encoding[self.encoding] <= self.free_bytes * (1 - RESERVE)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return asdict(self) | {"fits": self.fits}


def make_plan(request: ExtractRequest, store: Path, workers: int) -> Plan:
    """Work out the cost of a request; loads the teachers, reads a few frames, writes nothing.

    Raises:
        UsageError: the selection holds no frame.
        HildaError: the drive or a teacher cannot be used.
    """
    recipe = resolve_recipe(request, None)
    drive = open_drive_once(request.drive)
    plans = plan_parts(drive, request.selection, recipe.part_frames)
    if not plans:
        raise UsageError("the selection holds no frame", "widen --scenes or --frames")
    frames = sum(plan.stop - plan.start for plan in plans)
    images, missing = count_images(drive, plans, recipe.dataset.cameras)
    points, pairs = sample_points(drive, plans, recipe)
    by_encoding = {name: round(frames * size) for name, size in frame_bytes(recipe, points, pairs).items()}
    seconds = probe_seconds_per_image(request, drive, recipe)
    return Plan(
        parts=len(plans),
        frames=frames,
        images=images,
        missing_images=missing,
        points_per_frame=points,
        pairs_per_frame=pairs,
        bytes_by_encoding=by_encoding,
        encoding=f"{recipe.encoding.kind} {recipe.encoding.dtype}",
        files=len(plans) * files_per_part(recipe) + METADATA_FILES,
        free_bytes=shutil.disk_usage(nearest_folder(store)).free,
        seconds_per_image=seconds,
        workers=workers,
        hours=(images - missing) * seconds / workers / 3600,
    )


def nearest_folder(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def count_images(drive: Drive, plans: list[PartPlan], cameras: tuple[str, ...]) -> tuple[int, int]:
    """How many images the tables name for these parts, and how many of them the disk lacks."""
    images = missing = 0
    for plan in plans:
        for info in drive.frames(plan.scene)[plan.start : plan.stop]:
            for view in info.cameras:
                if view.name in cameras:
                    images += 1
                    missing += not os.path.exists(view.image_path)  # noqa: PTH110 - a million calls; pathlib is 3x slower
    return images, missing


def sample_points(drive: Drive, plans: list[PartPlan], recipe: Recipe) -> tuple[float, float]:
    """Mean points and pairs of a few frames spread over the selection."""
    chosen = sorted({round(k * (len(plans) - 1) / max(1, SAMPLED_FRAMES - 1)) for k in range(SAMPLED_FRAMES)})
    counts = []
    for plan in (plans[k] for k in chosen):
        info = drive.frames(plan.scene)[plan.start]
        points = drive.read(info).points
        counts.append((len(points), len(project_on(points, info, recipe.dataset.cameras))))
    return tuple(float(mean) for mean in np.mean(counts, axis=0))  # type: ignore[return-value]


def frame_bytes(recipe: Recipe, points: float, pairs: float) -> dict[str, float]:
    """Bytes of a mean frame in every encoding."""
    cameras = len(recipe.dataset.cameras)
    common = pairs * PAIR_BYTES + points * POINT_BYTES * recipe.store_points
    common += sum(2 * cameras * info.global_width for info in recipe.teachers)
    layers = [layer for info in recipe.teachers for layer in info.layers]
    tokens = [cameras * layer.height * layer.width for layer in layers]
    grid = sum(count * layer.channels for count, layer in zip(tokens, layers, strict=True))
    point = sum(pairs * layer.channels for layer in layers)
    return {
        "grid float16": common + 2 * grid,
        "grid int8": common + grid + 2 * sum(tokens),
        "point float16": common + 2 * point,
        "point int8": common + point + 2 * pairs * len(layers),
    }


def files_per_part(recipe: Recipe) -> int:
    """Files of one part: two an array (bytes and description), one a group, and the seal."""
    layers = sum(len(info.layers) for info in recipe.teachers)
    per_layer = 2 if recipe.encoding.dtype == "float16" else 8
    points = 2 * 4 * recipe.store_points
    globals_ = sum(2 for info in recipe.teachers if info.global_width)
    groups = 3 + len(recipe.teachers) + layers
    return layers * per_layer + points + 2 * 6 + globals_ + 2 + groups + 1


def probe_seconds_per_image(request: ExtractRequest, drive: Drive, recipe: Recipe) -> float:
    """Wall time of all teachers for one image, on one worker's share of this machine."""
    total = 0.0
    for teacher, info in zip(load_teachers_once(request.teachers), recipe.teachers, strict=True):
        images = sample_images(request, drive, teacher, recipe.dataset.cameras)
        if images is not None:
            total += _seconds_per_image(teacher, info, images)
    return total


def _seconds_per_image(teacher: Any, info: TeacherInfo, images: Any) -> float:
    import torch

    teacher.to_precision(getattr(torch, info.precision))
    teacher(images)  # the first call also allocates and tunes
    samples: list[float] = []
    began = time.perf_counter()
    while not samples or time.perf_counter() - began < PROBE_S:
        start = time.perf_counter()
        teacher(images)
        samples.append((time.perf_counter() - start) / len(images))
    return float(np.median(samples))
