"""Our reader passes the reader's check; the check agrees with what was written, and with the writer's check."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hilda_schema import Frame, open_cache
from hilda_schema.errors import CacheError
from hilda_schema.testing import (
    DamagedCase,
    ExpectedFrame,
    ReaderCase,
    check_store,
    damaged_cases,
    reader_cases,
    tiny_parts,
    tiny_recipe,
)
from hilda_schema.testing.rules import COMPLETE


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[ReaderCase]:
    return list(reader_cases(tmp_path_factory.mktemp("good")))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> list[DamagedCase]:
    return list(damaged_cases(tmp_path_factory.mktemp("bad")))


def check_frame(frame: Frame, expected: ExpectedFrame) -> None:
    assert str(frame.key) == expected.key
    assert (frame.stamp_ns, frame.absent, frame.camera_names) == (
        expected.stamp_ns,
        expected.absent,
        expected.cameras,
    )
    np.testing.assert_array_equal(frame.present, expected.present)
    np.testing.assert_array_equal(frame.world_SE3_lidar, expected.world_SE3_lidar)
    np.testing.assert_array_equal(frame.world_SE3_ego, expected.world_SE3_ego)
    for name, values in (expected.points or {}).items():
        np.testing.assert_array_equal(getattr(frame.points, name), values, strict=True)
    for name in ("point", "camera", "visible"):
        np.testing.assert_array_equal(getattr(frame.pairs, name), expected.pairs[name], strict=True)
    np.testing.assert_array_equal(frame.pairs.depth_m, expected.pairs["depth_m"].astype(np.float32))
    np.testing.assert_allclose(frame.pairs.uv_px, expected.pairs["uv_px"], rtol=0, atol=1e-9)
    for layer, grid in expected.grids.items():
        np.testing.assert_array_equal(frame.token_grid(*layer), grid)
    for layer, values in expected.bilinear.items():
        np.testing.assert_allclose(frame.point_features(*layer), values, rtol=1e-5, atol=1e-4)
    for layer, values in expected.nearest.items():
        np.testing.assert_array_equal(frame.point_features(*layer, mode="nearest"), values)
    for teacher, values in expected.global_tokens.items():
        np.testing.assert_array_equal(frame.global_tokens(teacher), values)


def test_our_reader_reads_what_is_expected(cases: list[ReaderCase]) -> None:
    assert len(cases) == 8
    for case in cases:
        assert check_store(case.store) == [], case.name
        cache = open_cache(case.store)
        assert len(cache) == len(case.frames) > 0
        for frame, expected in zip(cache, case.frames, strict=True):
            check_frame(frame, expected)


def test_what_is_expected_is_what_was_written(cases: list[ReaderCase]) -> None:
    """The expectations come from the stored arrays; here they are held against what went in."""
    by_name = {case.name: case for case in cases}
    manifests = {case.name: json.loads((case.store / "manifest.json").read_bytes()) for case in cases}
    measured = {name: manifest["encoding_error"] for name, manifest in manifests.items()}
    for name, recipe in (("grid-float16", tiny_recipe()), ("grid-int8", tiny_recipe("grid", "int8"))):
        written = [frame for part in tiny_parts(recipe, frames=4, points=60) for frame in part.frames]
        for expected, frame in zip(by_name[name].frames, written, strict=True):
            assert expected.key == str(frame.key)
            np.testing.assert_array_equal(expected.points["xyz_m"], frame.xyz_m)
            np.testing.assert_array_equal(expected.pairs["point"], frame.pairs.point)
            assert np.abs(expected.pairs["uv_px"] - frame.pairs.uv_px).max(initial=0) <= 160 / 2**17
            for layer, grid in frame.tokens.items():
                lost = np.linalg.norm((expected.grids[layer] - grid)[expected.present], axis=-1)
                stated = measured[name]["/".join(layer)]["relative_l2_max"]
                assert (lost <= 1.01 * stated * np.linalg.norm(grid[expected.present], axis=-1)).all()
                assert (lost > 0).any() or name == "grid-float16"


def test_the_cases_cover_what_readers_stumble_over(cases: list[ReaderCase]) -> None:
    frames = [frame for case in cases for frame in case.frames]
    assert any(frame.absent for frame in frames)
    assert any(len(frame.pairs["point"]) == 0 for frame in frames)
    assert any(frame.points is None for frame in frames)
    assert any(not frame.cameras for frame in frames)
    assert any(len(file["chunk_crc32c"] or ()) > 1 for file in seal_files(cases[-1]))


def seal_files(case: ReaderCase) -> list[dict]:
    return [
        file
        for path in case.store.glob("parts/*/seal.json")
        for name, file in json.loads(path.read_bytes())["files"].items()
        if name.startswith("points/")
    ]


def read_all(store: Path, index: int | None) -> None:
    cache = open_cache(store)
    if index is None:
        return
    frame = cache[index]
    assert frame.points is not None
    assert frame.pairs is not None
    for teacher in cache.teachers.values():
        for layer in teacher.layers:
            frame.point_features(teacher.name, layer.name)


def test_our_reader_refuses_every_damaged_store(damaged: list[DamagedCase]) -> None:
    assert len(damaged) > 20
    for case in damaged:
        try:
            read_all(case.store, case.frame)
        except CacheError:
            pass
        else:
            pytest.fail(f"{case.name} was read")
        if case.frame is not None:
            open_cache(case.store)  # it is this frame's reading that fails, not the opening


def test_the_writers_check_names_the_rule(damaged: list[DamagedCase]) -> None:
    for case in damaged:
        found = {violation.rule for violation in check_store(case.store)}
        assert found if case.rule != COMPLETE else not found, case.name
        assert case.rule in {*found, COMPLETE}, f"{case.name}: {[str(rule) for rule in found]}"
