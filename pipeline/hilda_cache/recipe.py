"""From a request to a recipe: what "auto" and "-1" turn out to mean for this drive and these weights.

Everything that is resolved here is resolved once, written into the store's manifest with its reason, and reused by
every later run on that store.
"""

from __future__ import annotations

from importlib.metadata import version

import torch
from torch import Tensor

from hilda_cache.drives import Drive
from hilda_cache.geometry import MIN_DEPTH_M, OCCLUSION
from hilda_cache.ground import GROUND
from hilda_cache.images import prepare, read_image
from hilda_cache.parts import default_part_frames, plan_parts, select_cameras
from hilda_cache.request import ASKED, ExtractRequest, open_drive_once
from hilda_cache.teachers import Teacher
from hilda_cache.teachers.attention import ATTENTION
from hilda_cache.teachers.info import teacher_info
from hilda_cache.teachers.precision import choose_precision
from hilda_cache.work import load_teachers_once
from hilda_schema.errors import DriveError
from hilda_schema.manifest import (
    DatasetInfo,
    EncodingInfo,
    ProjectionInfo,
    Recipe,
    SelectionInfo,
    TeacherInfo,
)


def resolve_recipe(request: ExtractRequest, settled: Recipe | None) -> Recipe:
    """Resolve a request on the machine that will do the work.

    Args:
        request: what was asked.
        settled: the recipe that the store already has; its measured precision is kept, not measured again.

    Returns:
        The recipe; it equals `settled` where the request asks for the same.
    """
    drive = open_drive_once(request.drive)
    cameras = select_cameras(drive, request.selection)
    teachers = load_teachers_once(request.teachers)
    infos = tuple(_settle(teacher, _known(settled, teacher), request, drive, cameras) for teacher in teachers)
    return Recipe(
        dataset=DatasetInfo(
            name=drive.dataset, version=drive.version, options=request.drive.recorded_options(), cameras=cameras
        ),
        selection=SelectionInfo(scenes=request.selection.scenes, frames=request.selection.frames),
        teachers=infos,
        projection=ProjectionInfo(min_depth_m=MIN_DEPTH_M, occlusion=OCCLUSION, ground=GROUND),
        encoding=EncodingInfo(kind=request.encoding, dtype=request.dtype),
        part_frames=request.part_frames or default_part_frames(infos, len(cameras)),
        store_points=request.store_points,
    )


def _known(settled: Recipe | None, teacher: Teacher) -> TeacherInfo | None:
    """The store's entry for this very teacher, if it has one."""
    if settled is None:
        return None
    for info in settled.teachers:
        if info == teacher_info(teacher.card, info.precision, info.precision_reason):
            return info
    return None


def _settle(
    teacher: Teacher,
    known: TeacherInfo | None,
    request: ExtractRequest,
    drive: Drive,
    cameras: tuple[str, ...],
) -> TeacherInfo:
    """A teacher with its precision decided: asked for, known from the store, or measured on the drive's images."""
    if request.precision != "auto":
        return teacher_info(teacher.card, request.precision, f"{request.precision}: {ASKED}")
    if known is not None and not known.precision_reason.endswith(ASKED):
        return known
    images = sample_images(request, drive, teacher, cameras)
    if images is None:
        return teacher_info(teacher.card, "float32", "float32: no image to check a reduced precision on")
    choice = choose_precision(teacher, images)
    return teacher_info(teacher.card, choice.dtype, choice.reason)


def sample_images(request: ExtractRequest, drive: Drive, teacher: Teacher, cameras: tuple[str, ...]) -> Tensor | None:
    """The first selected frame's readable images, prepared for a teacher: (B, 3, h, w), None where there is none."""
    for plan in plan_parts(drive, request.selection, 1):
        info = drive.frames(plan.scene)[plan.start]
        found = []
        for view in info.cameras:
            if view.name not in cameras:
                continue
            try:
                image = read_image(view.image_path.read_bytes(), view.image_path.name)
            except (OSError, DriveError):
                continue  # extraction itself reports or records it; here any readable picture will do
            found.append(prepare(image, teacher.card.preprocessing))
        if found:
            return torch.stack(found)
    return None


def software_versions() -> dict[str, str]:
    """Versions of what computes a feature: another one may change its last bits."""
    versions = {name: version(name) for name in ("torch", "transformers", "simplejpeg", "pillow")}
    return versions | {"attention": ATTENTION}
