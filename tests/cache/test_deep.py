"""Deep verification: the drive and the teachers that made a store agree with it, all others do not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilda_cache.deep import compare_frame, compare_frames, live_request, relative_error, smallest_cosine
from hilda_cache.drives import open_drive
from hilda_cache.drives.synthetic import make_drive
from hilda_cache.extract import extract
from hilda_cache.lanes import Stopwatch
from hilda_cache.parts import hash_sources
from hilda_cache.request import DriveSpec, ExtractRequest
from hilda_cache.teachers import load_teacher
from hilda_cache.teachers.random_vit import save_random_dinov2
from hilda_cache.teachers.spec import TeacherSpec
from hilda_cache.work import make_frame
from hilda_schema import open_cache
from hilda_schema.content import FrameContent
from hilda_schema.errors import TeacherError, UsageError


@pytest.fixture(scope="module")
def teacher(tiny_vit: Path) -> TeacherSpec:
    return TeacherSpec(name="vit", source=str(tiny_vit), layers=("3", "4"), image_size=(56, 112))


@pytest.fixture(scope="module")
def store(tiny_drive: Path, teacher: TeacherSpec, dask_client: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the encoding that loses most. Do not change it."""
    asked = ExtractRequest(DriveSpec("nuscenes", str(tiny_drive)), (teacher,), precision="float32", dtype="int8")
    out = tmp_path_factory.mktemp("stores") / "store"
    assert extract(asked, out, dask_client, lambda recipe, report: None, lambda report: None).complete
    return out


def live_frame(drive: Path, teacher: TeacherSpec, index: int) -> FrameContent:
    opened = open_drive("nuscenes", drive)
    infos = [info for scene in opened.scenes() for info in opened.frames(scene)]
    sources = hash_sources(opened, [infos[index]], opened.camera_names)
    loaded = (load_teacher(teacher, device="cpu"),)
    return make_frame(opened, loaded, opened.camera_names, infos[index], sources, Stopwatch(), skip=True)


def test_the_drive_and_the_teacher_of_a_store_agree_with_it(tiny_drive: Path, tiny_vit: Path, store: Path) -> None:
    cache = open_cache(store)
    rows, problems = compare_frames(cache, 3, live_request(cache.manifest.recipe, tiny_drive, [str(tiny_vit)]))
    assert problems == []
    keys = [str(frame.key) for frame in cache]
    assert [row["frame"] for row in rows] == [keys[0], keys[2], keys[5]]  # spread over the store
    for row in rows:
        assert row["cosines"].keys() == {"vit/3", "vit/4"}
        assert 0.999 < row["cosine_min"] == min(row["cosines"].values()) < 1  # int8 loses something


def test_the_teacher_may_lie_elsewhere(tiny_drive: Path, tiny_vit: Path, store: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_vit, tmp_path / "downloaded")
    recipe = open_cache(store).manifest.recipe
    _, problems = compare_frames(open_cache(store), 1, live_request(recipe, tiny_drive, [str(tmp_path / "downloaded")]))
    assert problems == []


def test_another_teacher_is_caught_by_its_weights(tiny_drive: Path, store: Path, tmp_path: Path) -> None:
    other = save_random_dinov2(tmp_path / "other", seed=1)
    cache = open_cache(store)
    with pytest.raises(TeacherError, match="differs from the recipe in weights_sha256"):
        compare_frames(cache, 1, live_request(cache.manifest.recipe, tiny_drive, [str(other)]))


def test_another_teacher_is_caught_by_its_features(
    tiny_drive: Path, teacher: TeacherSpec, store: Path, tmp_path: Path
) -> None:
    """As if the manifest lied about the weights."""
    frame = open_cache(store)[0]
    cosines, problems = compare_frame(frame, live_frame(tiny_drive, teacher, 0))
    assert problems == []
    other = replace(teacher, source=str(save_random_dinov2(tmp_path / "other", seed=1)))
    cosines, problems = compare_frame(frame, live_frame(tiny_drive, other, 0))
    assert max(cosines.values()) < 0.9
    assert [problem.partition(" differs")[0] for problem in problems] == ["vit's global token", "vit/3", "vit/4"]


def test_another_image_point_or_pose_is_caught(tiny_drive: Path, teacher: TeacherSpec, store: Path) -> None:
    frame, live = open_cache(store)[0], live_frame(tiny_drive, teacher, 0)
    mirrored = {name: grid[:, :, ::-1].copy() for name, grid in live.tokens.items()}
    assert all(
        "differs from the live teacher" in text for text in compare_frame(frame, replace(live, tokens=mirrored))[1]
    )

    def said(**changes: Any) -> str:
        (problem,) = compare_frame(frame, replace(live, **changes))[1]
        return problem

    assert "points or their ground" in said(xyz_m=live.xyz_m + np.float32(1e-3))
    assert "points or their ground" in said(ground=~live.ground)
    assert "are hidden" in said(pairs=replace(live.pairs, visible=~live.pairs.visible))
    moved = replace(live.pairs, uv_px=live.pairs.uv_px + np.array([0.06, 0.0]))
    assert "differ by up to 0.06" in said(pairs=moved)
    fewer = {name: getattr(live.pairs, name)[1:] for name in ("point", "camera", "uv_px", "depth_m", "visible")}
    assert "pairs are not those" in said(pairs=replace(live.pairs, **fewer))
    assert "pairs are not those" in said(pairs=replace(live.pairs, camera=live.pairs.camera[::-1].copy()))


def test_a_lost_image_is_named_and_another_drive_refused(
    tiny_drive: Path, tiny_vit: Path, store: Path, tmp_path: Path
) -> None:
    cache = open_cache(store)
    drive = tmp_path / "drive"
    shutil.copytree(tiny_drive, drive)
    lost = sorted((drive / "samples" / "CAM_BACK").iterdir())[0]
    lost.unlink()
    _, problems = compare_frames(cache, 1, live_request(cache.manifest.recipe, drive, [str(tiny_vit)]))
    assert len(problems) == 1
    assert f"CAM_BACK: samples/CAM_BACK/{lost.name}: no such file" in problems[0]

    other = tmp_path / "other"
    make_drive(other, scenes=1, frames=1, seed=9, image_size=(176, 99))
    with pytest.raises(UsageError, match=r"is not in .*other"):
        compare_frames(cache, 1, live_request(cache.manifest.recipe, other, [str(tiny_vit)]))


def test_teachers_that_the_store_does_not_have_are_refused_at_once(tiny_drive: Path, store: Path) -> None:
    recipe = open_cache(store).manifest.recipe
    with pytest.raises(UsageError, match="the store's teachers are vit"):
        live_request(recipe, tiny_drive, ["a=x", "b=y"])


def test_cosine_is_about_the_mean_and_survives_rows_at_it() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 8)) + 100.0
    centre = rows.mean(axis=0)
    turned = rows.copy()
    turned[7] = centre + (rows[7] - centre)[::-1]
    a, b = rows[7] - centre, turned[7] - centre
    assert smallest_cosine(turned, rows) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    same = np.ones((3, 4))
    assert smallest_cosine(same, same) == 1
    assert smallest_cosine(same * 1.5, same) == 0
    np.testing.assert_allclose(relative_error(same * 1.01, same), 0.01)
