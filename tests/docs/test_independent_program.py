"""A reader and a writer made from docs/cache-format.md alone agree with ours, to the bit."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hilda_cache.reshape.forget import forget
from hilda_cache.reshape.reencode import reencode
from hilda_cache.reshape.subset import Cut, subset
from hilda_schema import open_cache
from hilda_schema.content import FrameContent, PartContent
from hilda_schema.manifest import EncodingInfo
from hilda_schema.reader import Frame
from hilda_schema.testing import tiny_cache, tiny_parts, tiny_recipe, validate

HERE = Path(__file__).parent
ENCODINGS = [(kind, dtype) for kind in ("grid", "point") for dtype in ("float16", "int8")]
POINT_COLUMNS = ("xyz_m", "intensity", "ground", "time_offset_ns", "ring", "label")
PAIR_COLUMNS = ("point", "camera", "uv_px", "visible")


@pytest.fixture(scope="module")
def programs() -> Any:
    """The modules `independent` and `independent_writer`."""
    sys.path.insert(0, str(HERE))
    try:
        yield importlib.import_module("independent"), importlib.import_module("independent_writer")
    finally:
        sys.path.remove(str(HERE))


def test_the_programs_import_nothing_of_ours() -> None:
    found = set()
    for name in ("independent.py", "independent_writer.py"):
        for node in ast.walk(ast.parse((HERE / name).read_text())):
            found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            found |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    packages = {str(name).split(".")[0] for name in found} - sys.stdlib_module_names
    assert packages == {"numpy", "pyarrow", "independent"}


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def check_frame(found: dict[str, Any], ours: Frame) -> None:
    """Compare a frame that the independent reader read with ours."""
    table, seal = found["table"], found["seal"]
    row = ours.cache.frames.slice(ours.index, 1).to_pylist()[0]
    assert table == row
    assert (table["key"], seal["stamp_ns"]) == (str(ours.key), ours.stamp_ns)
    for name in ("world_SE3_lidar", "world_SE3_ego"):
        assert seal[name] == table[name] == getattr(ours, name).ravel().tolist()
    assert json.loads(table["absent"]) == seal["absent"] == ours.absent
    same(found["present"], ours.present)
    recipe = ours.cache.manifest.recipe
    assert ("points" in found) == recipe.store_points
    for name in POINT_COLUMNS if recipe.store_points else ():
        if (expected := getattr(ours.points, name)) is None:
            assert name not in found["points"]
        else:
            same(found["points"][name], expected)
    for name in PAIR_COLUMNS:
        same(found["pairs"][name], getattr(ours.pairs, name))
    same(found["pairs"]["depth_m"].astype(np.float32), ours.pairs.depth_m)
    grid = recipe.encoding.kind == "grid"
    for teacher in recipe.teachers:
        for layer in teacher.layers:
            values = found[teacher.name, layer.name]
            basis = ours.cache.basis(teacher.name, layer.name)
            same(values.pop("basis", np.zeros(0)), np.zeros(0) if basis is None else basis)
            assert values.keys() == ({"grid", "bilinear", "nearest"} if grid else {"bilinear"})
            for mode in values.keys() - {"grid"}:
                same(values[mode], ours.point_features(teacher.name, layer.name, mode))
            if grid:
                same(values["grid"], ours.token_grid(teacher.name, layer.name))
        if teacher.global_width:
            same(found[teacher.name, "global"].astype(np.float32), ours.global_tokens(teacher.name))


def check_store(reader: ModuleType, store: Path) -> None:
    independent, cache = reader.Reader(store), open_cache(store)
    assert len(independent.frames) == len(cache)
    for k in range(len(cache)):
        check_frame(independent.frame(k), cache[k])


@pytest.mark.parametrize(("kind", "dtype"), ENCODINGS)
def test_the_independent_reader_reads_what_ours_reads(
    tmp_path: Path, programs: tuple[ModuleType, ModuleType], kind: str, dtype: str
) -> None:
    check_store(programs[0], tiny_cache(tmp_path / "cache", kind=kind, dtype=dtype))


def test_it_reads_what_was_made_from_other_stores(tmp_path: Path, programs: tuple[ModuleType, ModuleType]) -> None:
    store = tiny_cache(tmp_path / "cache", points=60)
    cut = Cut(frames="1:4", cameras=("BACK", "LEFT"), layers={"vit": ["4"]})
    subset(str(store), tmp_path / "cut", cut, "")
    reencode(str(tmp_path / "cut"), tmp_path / "anew", EncodingInfo(kind="point", dtype="int8"))
    forget(tmp_path / "anew", [], ["toy/scene-0001/000002"], "asked")
    reencode(str(tmp_path / "cut"), tmp_path / "fewer", EncodingInfo(dtype="int8"), {"vit": 3})
    for name in ("cut", "anew", "fewer"):
        check_store(programs[0], tmp_path / name)
    manifest = programs[0].Reader(tmp_path / "anew").manifest
    assert [parent["operation"] for parent in manifest["parents"]] == ["forget"]
    assert manifest["forgotten"][0]["frames"] == [programs[0].sha256(b"toy/scene-0001/000002")]
    assert not {"parents", "forgotten"} & programs[0].Reader(store).manifest.keys()


def test_it_reads_stores_without_points_and_arrays_of_several_chunks(
    tmp_path: Path, programs: tuple[ModuleType, ModuleType]
) -> None:
    check_store(programs[0], tiny_cache(tmp_path / "bare", store_points=False, scenes=1, frames=3))
    large = tiny_cache(tmp_path / "large", scenes=1, frames=4, points=15_000)
    assert any(
        len(file["chunk_crc32c"] or ()) == 2 and path.startswith("points/")
        for part in programs[0].Reader(large).parts.values()
        for path, file in part.seal["files"].items()
    )
    check_store(programs[0], large)


def plain_part(content: PartContent) -> dict[str, Any]:
    """A part as the independent writer takes it."""
    return {
        "part": content.part,
        "scene": content.scene,
        "cameras": content.camera_sizes_px,
        "sources": content.sources,
        "calibration_sha256": content.calibration_sha256,
        "frames": [plain_frame(frame) for frame in content.frames],
    }


def plain_frame(frame: FrameContent) -> dict[str, Any]:
    return {
        "row": {
            "key": "/".join((frame.key.drive, frame.key.scene, frame.key.frame)),
            "position": frame.position,
            "stamp_ns": frame.stamp_ns,
            "world_SE3_lidar": frame.world_SE3_lidar.ravel().tolist(),
            "world_SE3_ego": frame.world_SE3_ego.ravel().tolist(),
            "points": len(frame.xyz_m),
            "points_dropped": frame.points_dropped,
            "pairs": len(frame.pairs),
            "points_seen": len(set(frame.pairs.point.tolist())),
            "absent": frame.absent,
        },
        "points": {name: getattr(frame, name) for name in POINT_COLUMNS},
        "pairs": {name: getattr(frame.pairs, name) for name in (*PAIR_COLUMNS, "depth_m")},
        "grids": frame.tokens,
        "global": frame.global_tokens,
    }


def seal_parts(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """A seal without what depends on its last digits, and its measured errors."""
    seal = json.loads(path.read_bytes())
    return {name: seal[name] for name in seal.keys() - {"self_sha256", "encoding_error"}}, seal["encoding_error"]


@pytest.mark.parametrize(("kind", "dtype"), ENCODINGS)
@pytest.mark.parametrize("store_points", [True, False])
def test_the_independent_writer_writes_our_bytes(
    tmp_path: Path, programs: tuple[ModuleType, ModuleType], kind: str, dtype: str, store_points: bool
) -> None:
    recipe = tiny_recipe(kind, dtype, store_points=store_points)
    contents = tiny_parts(recipe, points=100)
    ours = tiny_cache(tmp_path / "ours", kind=kind, dtype=dtype, store_points=store_points, points=100)
    theirs = tmp_path / "theirs"
    parts = [plain_part(content) for content in contents]
    programs[1].write_store(theirs, recipe.model_dump(mode="json"), parts[::-1], "a test", {})

    validate(theirs)
    files = [{path.relative_to(root): path for path in root.rglob("*") if path.is_file()} for root in (ours, theirs)]
    files[0].pop(Path("history.json"))  # which a store need not have
    assert files[0].keys() == files[1].keys()
    for name, path in files[0].items():
        if name.name == "seal.json":
            (expected, expected_error), (found, error) = seal_parts(path), seal_parts(files[1][name])
            assert found == expected
            for layer, values in expected_error.items():
                assert error[layer] == pytest.approx(values, rel=0.01, abs=2e-6)
        elif name.parts[0] == "parts" or name.name == "zarr.json":
            assert files[1][name].read_bytes() == path.read_bytes(), name
    tables = [pq.read_table(root / "frames.parquet").drop_columns("seal_sha256") for root in (ours, theirs)]
    assert tables[0].equals(tables[1])
