"""What "auto" and "-1" turn out to mean is decided once and stays decided."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hilda_cache.parts import MAX_PART_FRAMES, PART_BYTES
from hilda_cache.recipe import resolve_recipe, sample_images, software_versions
from hilda_cache.request import DriveSpec, ExtractRequest, Selection
from hilda_cache.teachers import load_teacher
from hilda_cache.teachers.spec import TeacherSpec
from hilda_schema.errors import UsageError

SIZE = (56, 112)


def request(drive: Path, vit: Path, layers: tuple[str, ...] = ("-2", "-1"), **changes: Any) -> ExtractRequest:
    teacher = TeacherSpec(name="vit", source=str(vit), layers=layers, image_size=SIZE)
    return ExtractRequest(**({"drive": DriveSpec("nuscenes", str(drive)), "teachers": (teacher,)} | changes))


def test_indices_become_names_and_every_shape_is_known(tiny_drive: Path, tiny_vit: Path) -> None:
    recipe = resolve_recipe(request(tiny_drive, tiny_vit, precision="float32"), None)
    (teacher,) = recipe.teachers
    assert [(layer.name, layer.height, layer.width) for layer in teacher.layers] == [("3", 4, 8), ("4", 4, 8)]
    assert teacher.precision_reason == "float32: asked for"
    assert recipe == resolve_recipe(request(tiny_drive, tiny_vit, ("3", "4"), precision="float32"), None)
    assert recipe.dataset.cameras[0] == "CAM_FRONT"
    assert recipe.dataset.version == "v1.0-synthetic"


def test_a_part_keeps_a_worker_within_its_memory(tiny_drive: Path, tiny_vit: Path) -> None:
    recipe = resolve_recipe(request(tiny_drive, tiny_vit, precision="float32"), None)
    assert recipe.part_frames == MAX_PART_FRAMES  # a tiny teacher
    large = request(tiny_drive, tiny_vit, precision="float32", part_frames=7)
    assert resolve_recipe(large, None).part_frames == 7
    per_frame = sum(layer.channels * layer.height * layer.width for layer in recipe.teachers[0].layers) * 6 * 2
    assert recipe.part_frames * per_frame <= PART_BYTES


def test_what_was_measured_is_not_measured_again(tiny_drive: Path, tiny_vit: Path) -> None:
    """Another machine could measure something else, and one store would hold two kinds of features."""
    asked = request(tiny_drive, tiny_vit)
    first = resolve_recipe(asked, None)
    settled = first.model_copy(
        update={
            "teachers": (
                first.teachers[0].model_copy(update={"precision": "bfloat16", "precision_reason": "measured there"}),
            )
        }
    )
    assert resolve_recipe(asked, settled) == settled
    # Of another teacher or size nothing was measured.
    larger = request(tiny_drive, tiny_vit)
    larger = ExtractRequest(larger.drive, (TeacherSpec("vit", str(tiny_vit), ("-2", "-1"), (70, 112)),))
    assert resolve_recipe(larger, settled).teachers[0].precision_reason != "measured there"
    # Who asks for a precision gets it, whatever was measured.
    assert (
        resolve_recipe(request(tiny_drive, tiny_vit, precision="float32"), settled).teachers[0].precision == "float32"
    )


def test_without_an_image_there_is_no_reduced_precision(tiny_drive: Path, tiny_vit: Path, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    shutil.copytree(tiny_drive, drive)
    for image in drive.glob("samples/CAM_*/*"):
        image.unlink()
    (teacher,) = resolve_recipe(request(drive, tiny_vit), None).teachers
    assert (teacher.precision, teacher.precision_reason) == (
        "float32", "float32: no image to check a reduced precision on"
    )  # fmt: skip


def test_the_sample_is_the_first_frame_with_a_readable_image(tiny_drive: Path, tiny_vit: Path, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    shutil.copytree(tiny_drive, drive)
    asked = request(drive, tiny_vit)
    teacher = load_teacher(asked.teachers[0], device="cpu")
    opened = asked.drive.open()
    cameras = opened.camera_names
    whole = sample_images(asked, opened, teacher, cameras)
    assert whole is not None
    assert whole.shape == (6, 3, *SIZE)
    first, second, *_ = opened.frames(opened.scenes()[0])
    first.cameras[0].image_path.write_bytes(b"torn")
    fewer = sample_images(asked, opened, teacher, cameras)
    assert fewer is not None
    torch.testing.assert_close(fewer, whole[1:])
    for view in first.cameras:
        view.image_path.unlink(missing_ok=True)
    later = sample_images(asked, opened, teacher, cameras[:1])
    assert later is not None
    assert later.shape[0] == 1
    assert not torch.equal(later[0], whole[0])
    assert second.cameras[0].image_path.exists()


def test_an_unknown_camera_is_refused_before_a_model_is_loaded(tiny_drive: Path, tmp_path: Path) -> None:
    nowhere = request(tiny_drive, tmp_path, selection=Selection(cameras=("CAM_FORNT",)))
    with pytest.raises(UsageError, match="did you mean CAM_FRONT"):
        resolve_recipe(nowhere, None)


def test_versions_that_change_a_feature_are_all_named() -> None:
    versions = software_versions()
    assert versions.keys() == {"torch", "transformers", "simplejpeg", "pillow", "attention"}
    assert all(", " not in each for each in versions.values())  # which is how a merge lists several
    assert versions["torch"] == torch.__version__
