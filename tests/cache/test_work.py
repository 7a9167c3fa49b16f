"""A worker's side: what it refuses, and that a frame's journey does not depend on what travels with it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hilda_cache.drives import CameraView, Drive, FrameInfo, open_drive
from hilda_cache.drives.synthetic import make_drive
from hilda_cache.frames import load_frame, project_on, read_view
from hilda_cache.geometry import project
from hilda_cache.lanes import Stopwatch
from hilda_cache.parts import Sources, hash_sources
from hilda_cache.request import DriveSpec, ExtractRequest
from hilda_cache.teachers import load_teacher
from hilda_cache.teachers.spec import TeacherSpec
from hilda_cache.work import camera_sizes_px, make_frame, missing_sensor, teach, teachers_of
from hilda_schema.content import FrameContent
from hilda_schema.errors import DriveError, MissingSensor, TeacherError
from hilda_schema.layout import LIDAR
from hilda_schema.manifest import DatasetInfo, EncodingInfo, ProjectionInfo, Recipe, SelectionInfo, TeacherInfo


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Drive:
    """One frame, of which tests may break a copy."""
    root = tmp_path_factory.mktemp("drives") / "one"
    make_drive(root, scenes=1, frames=1, seed=0, image_size=(176, 99))
    return open_drive("nuscenes", root)


def copied(drive: Drive, to: Path) -> tuple[Drive, FrameInfo]:
    shutil.copytree(drive.root, to)
    opened = open_drive("nuscenes", to)
    return opened, only_frame(opened)


def only_frame(drive: Drive) -> FrameInfo:
    (scene,) = drive.scenes()
    (info,) = drive.frames(scene)
    return info


def test_an_image_that_changes_between_hashing_and_reading_is_refused(drive: Drive, tmp_path: Path) -> None:
    opened, info = copied(drive, tmp_path / "drive")
    sources = hash_sources(opened, [info], opened.camera_names)
    view, other = info.cameras[0], info.cameras[1]
    assert read_view(opened, info, view, sources).shape == (99, 176, 3)
    view.image_path.write_bytes(other.image_path.read_bytes())
    with pytest.raises(DriveError, match=f"{view.image_path.name}.*changed while it was being read"):
        read_view(opened, info, view, sources)


def test_an_image_of_another_size_than_the_calibration_is_refused(drive: Drive) -> None:
    info = only_frame(drive)
    sources = hash_sources(drive, [info], drive.camera_names)
    view = replace(info.cameras[0], width_px=1600, height_px=900)
    with pytest.raises(DriveError, match=f"frame {info.key}.*is 176x99 pixels, its calibration is for 1600x900"):
        read_view(drive, info, view, sources)


def test_a_camera_that_changes_its_size_within_a_part_is_refused(drive: Drive) -> None:
    info = only_frame(drive)
    cameras = drive.camera_names
    assert camera_sizes_px((info, info), cameras) == dict.fromkeys(cameras, (176, 99))
    assert camera_sizes_px((info,), (*cameras, "CAM_ROOF"))["CAM_ROOF"] == (0, 0)
    odd = replace(info, cameras=(replace(info.cameras[0], width_px=100), *info.cameras[1:]))
    with pytest.raises(DriveError, match=f"{info.cameras[0].name} changes its image size to 100x99"):
        camera_sizes_px((info, odd), cameras)


def test_pairs_are_numbered_as_the_store_numbers_its_cameras(drive: Drive) -> None:
    info = only_frame(drive)
    points = drive.read(info).points
    all_pairs = project(points.xyz_m, info)
    stored = ("CAM_BACK", "CAM_FRONT")  # another order than the drive's, and a subset
    views = tuple(view for view in info.cameras if view.name in stored)
    pairs = project_on(points, replace(info, cameras=views), stored)
    for number, name in enumerate(stored):
        in_drive = [view.name for view in info.cameras].index(name)
        expected = all_pairs.uv_px[all_pairs.camera == in_drive]
        np.testing.assert_array_equal(pairs.uv_px[pairs.camera == number], expected)
        assert (pairs.camera == number).any()


def test_absences_are_recorded_only_where_that_is_allowed(drive: Drive, tmp_path: Path) -> None:
    opened, info = copied(drive, tmp_path / "drive")
    info.cameras[2].image_path.unlink()
    info.cameras[3].image_path.write_bytes(b"not a JPEG")
    cameras = (*opened.camera_names, "CAM_ROOF")
    sources = hash_sources(opened, [info], cameras)

    def frame(skip: bool):
        return make_frame(opened, (), cameras, info, sources, Stopwatch(), skip=skip)

    with pytest.raises(MissingSensor, match=info.cameras[2].image_path.name):
        frame(skip=False)
    made = frame(skip=True)
    assert made.absent.keys() == {info.cameras[2].name, info.cameras[3].name, "CAM_ROOF"}
    assert not any(str(tmp_path) in reason for reason in made.absent.values())  # stored and shared
    seen = {cameras[number] for number in np.unique(made.pairs.camera)}
    assert seen == set(opened.camera_names) - made.absent.keys()

    (sweep, *_) = info.lidar_paths
    sweep.write_bytes(sweep.read_bytes()[:-3])
    made = make_frame(opened, (), cameras, info, hash_sources(opened, [info], cameras), Stopwatch(), skip=True)
    assert LIDAR in made.absent
    assert len(made.xyz_m) == len(made.pairs) == 0


def test_missing_files_are_named_and_counted(drive: Drive) -> None:
    info = only_frame(drive)
    one = missing_sensor((info,), Sources({}, ("samples/a.jpg",)))
    assert one.message.startswith("samples/a.jpg: no such file")
    three = missing_sensor((info, info), Sources({}, ("samples/a.jpg", "b", "c")))
    assert "samples/a.jpg and 2 more of this part: no such file" in three.message
    assert str(info.key) in three.message
    assert "--missing skip" in three.remedy


def test_features_of_a_camera_do_not_depend_on_which_others_are_there(drive: Drive, tiny_vit: Path) -> None:
    """Beyond rounding: a batch's size may change the order of a sum, never which image a row is of."""
    teacher = load_teacher(TeacherSpec("vit", str(tiny_vit), ("4",), (56, 112)), device="cpu")
    info, cameras = only_frame(drive), drive.camera_names[:3]
    sources = hash_sources(drive, [info], cameras)

    def seen(views: tuple[CameraView, ...]) -> FrameContent:
        wanted = frozenset({teacher.card.preprocessing})
        only = replace(info, cameras=views)
        loaded = load_frame(drive, cameras, wanted, only, sources, Stopwatch(), skip=True)
        return teach((teacher,), loaded, len(cameras))()

    whole, fewer = seen(info.cameras), seen((info.cameras[2], info.cameras[0]))
    for row in (0, 2):
        np.testing.assert_allclose(fewer.tokens["vit", "4"][row], whole.tokens["vit", "4"][row], atol=1e-4)
        np.testing.assert_allclose(fewer.global_tokens["vit"][row], whole.global_tokens["vit"][row], atol=1e-4)
    assert np.isnan(fewer.tokens["vit", "4"][1]).all()
    assert np.isnan(fewer.global_tokens["vit"][1]).all()
    nothing = seen(())
    assert np.isnan(nothing.tokens["vit", "4"]).all()
    assert np.isnan(nothing.global_tokens["vit"]).all()


@pytest.mark.gpu
def test_a_gpu_says_what_the_cpu_says(drive: Drive, tiny_vit: Path) -> None:
    info, spec = only_frame(drive), TeacherSpec("vit", str(tiny_vit), ("4",), (56, 112))
    cameras, sources = drive.camera_names, hash_sources(drive, [info], drive.camera_names)

    def made(device: str) -> FrameContent:
        teachers = (load_teacher(spec, device),)
        return make_frame(drive, teachers, cameras, info, sources, Stopwatch(), skip=False)

    on_cpu, on_gpu = made("cpu"), made("cuda")
    np.testing.assert_allclose(on_gpu.tokens["vit", "4"], on_cpu.tokens["vit", "4"], atol=1e-2)
    np.testing.assert_allclose(on_gpu.global_tokens["vit"], on_cpu.global_tokens["vit"], atol=1e-2)


def test_a_worker_with_other_weights_refuses_the_recipe(tiny_vit: Path) -> None:
    from hilda_cache.teachers.info import teacher_info

    spec = TeacherSpec("vit", str(tiny_vit), ("4",), (56, 112))
    request = ExtractRequest(DriveSpec("nuscenes", "/nowhere"), (spec,))
    info = teacher_info(load_teacher(spec, device="cpu").card, "float32", "asked for")

    def recipe(teacher: TeacherInfo) -> Recipe:
        return Recipe(
            dataset=DatasetInfo(name="nuscenes", cameras=("a",)), selection=SelectionInfo(), teachers=(teacher,),
            projection=ProjectionInfo(occlusion="o", ground="g"), encoding=EncodingInfo(), part_frames=1,
        )  # fmt: skip

    assert [teacher.card.name for teacher in teachers_of(request, recipe(info))] == ["vit"]
    other = info.model_copy(update={"weights_sha256": "0" * 64, "source": "elsewhere"})
    with pytest.raises(TeacherError, match="'vit' on this worker differs from the recipe in source, weights_sha256"):
        teachers_of(request, recipe(other))
    with pytest.raises(TeacherError, match=r"in weights_sha256$|in weights_sha256 "):
        teachers_of(request, recipe(other), ignoring=frozenset({"source"}))
