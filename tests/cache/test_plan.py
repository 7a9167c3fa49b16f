"""A plan's numbers against what an extraction then writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hilda_cache import commands
from hilda_cache import plan as plan_module
from hilda_cache.extract import extract
from hilda_cache.parts import PartPlan
from hilda_cache.plan import MEASURED_PARTS, Plan, Probe, make_plan, most_frames, store_size
from hilda_cache.request import DriveSpec, ExtractRequest, Selection
from hilda_cache.teachers.spec import TeacherSpec
from hilda_schema import open_cache
from hilda_schema.testing import tiny_recipe

ENCODINGS = [("grid", "float16"), ("grid", "int8"), ("point", "float16"), ("point", "int8")]


def request(drive: Path, vit: Path, **changes: Any) -> ExtractRequest:
    teacher = TeacherSpec(name="vit", source=str(vit), layers=("-2", "-1"), image_size=(56, 112))
    fields: dict[str, Any] = {
        "drive": DriveSpec("nuscenes", str(drive)), "teachers": (teacher,), "precision": "float32", "part_frames": 2
    }  # fmt: skip
    return ExtractRequest(**(fields | changes))


@pytest.fixture(scope="module")
def plan(tiny_drive: Path, tiny_vit: Path) -> Plan:
    return make_plan(request(tiny_drive, tiny_vit), Path("nowhere"), workers=3)


@pytest.mark.parametrize(("kind", "dtype"), ENCODINGS)
def test_bytes_and_files_are_those_of_the_store(
    tiny_drive: Path, tiny_vit: Path, plan: Plan, dask_client: Any, tmp_path: Path, kind: Any, dtype: Any
) -> None:
    asked, store = request(tiny_drive, tiny_vit, encoding=kind, dtype=dtype), tmp_path / "store"
    assert extract(asked, store, dask_client, lambda recipe, report: None, lambda report: None).complete
    files = [path for path in store.rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in (store / "parts").rglob("*") if path.is_file())
    assert plan.bytes_by_encoding[f"{kind} {dtype}"] == pytest.approx(written, rel=0.02)
    if (kind, dtype) == ("grid", "float16"):
        cache = open_cache(store)
        assert plan.encoding == "grid float16"
        assert plan.files == len(files)
        assert (plan.frames, plan.parts, plan.images) == (len(cache), len(cache.parts), 36)
        assert plan.points_per_frame == pytest.approx(np.mean(cache.frames["points"].to_numpy()))
        assert plan.pairs_per_frame == pytest.approx(np.mean(cache.frames["pairs"].to_numpy()))


PARTS = [PartPlan(scene, start, stop) for scene in ("scene-0001", "scene-0002") for start, stop in ((0, 1), (1, 3))]


def test_parts_are_shared_out_as_workers_get_free() -> None:
    assert [most_frames(PARTS, workers) for workers in (1, 2, 3, 4)] == [6, 4, 3, 2]


def test_time_is_that_of_the_workers_that_find_a_part(tiny_drive: Path, tiny_vit: Path, plan: Plan) -> None:
    assert plan.parts == 4
    assert plan.workers == 3
    assert plan.hours == pytest.approx(most_frames(PARTS, 3) * plan.seconds_per_frame / 3600)
    assert 0 < plan.seconds_per_image * 6 <= plan.seconds_per_frame
    assert make_plan(request(tiny_drive, tiny_vit), Path("nowhere"), workers=50).workers == 4


def test_a_large_store_is_worked_out_from_some_of_its_parts() -> None:
    recipe = tiny_recipe(part_frames=4)
    probe = Probe(np.array([0]), np.array([30_000]), np.array([20_000]), frozenset({"label"}), 0.1, 1.0)
    plans = [PartPlan("scene", 4 * k, 4 * k + 4) for k in range(5 * MEASURED_PARTS)]
    one, all_of_them = (store_size(recipe, some, probe, 3.0) for some in (plans[:1], plans))
    assert all_of_them[0] == pytest.approx(len(plans) * one[0], rel=1e-6)
    assert all_of_them[1] - plan_module.ROOT_FILES == len(plans) * (one[1] - plan_module.ROOT_FILES)


def test_only_the_cameras_and_frames_asked_for_are_counted(tiny_drive: Path, tiny_vit: Path, plan: Plan) -> None:
    selection = Selection(scenes=("scene-0002",), frames="1:", cameras=("CAM_BACK", "CAM_FRONT"))
    some = make_plan(request(tiny_drive, tiny_vit, selection=selection), Path("nowhere"), workers=1)
    assert (some.frames, some.parts, some.images) == (2, 1, 4)
    assert 0 < some.pairs_per_frame < plan.pairs_per_frame


def test_it_says_so_and_fails_when_it_will_not_fit(
    tiny_drive: Path, tiny_vit: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked, store = request(tiny_drive, tiny_vit), tmp_path / "store"
    assert commands.plan(asked, store, 1, as_json=False) == 0
    assert "it fits" in capsys.readouterr().out
    # A little more than is needed does not leave the disk its reserve.
    needed = plan.bytes_by_encoding["grid float16"]
    for share, code, said in ((1.02, 1, "it does NOT fit"), (1.07, 0, "it fits")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(needed * share)))  # noqa: B023
        assert commands.plan(asked, store, 1, as_json=False) == code
        assert said in capsys.readouterr().out
    assert not store.exists()


def test_missing_images_are_counted_and_bring_no_pairs(
    tiny_drive: Path, tiny_vit: Path, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drive = tmp_path / "drive"
    shutil.copytree(tiny_drive, drive)
    for image in (drive / "samples" / "CAM_FRONT").iterdir():
        image.unlink()
    assert commands.plan(request(drive, tiny_vit), tmp_path, 1, as_json=False) == 1
    said = capsys.readouterr()
    assert "36 images (6 missing)" in said.out
    assert "6 images are missing: restore them, or add --missing skip" in said.err
    skipping = request(drive, tiny_vit, missing="skip")
    assert commands.plan(skipping, tmp_path, 1, as_json=False) == 0
    assert make_plan(skipping, tmp_path, 1).pairs_per_frame < plan.pairs_per_frame
