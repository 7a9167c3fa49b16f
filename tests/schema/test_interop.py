"""A store in other people's libraries: the same values, with the names that the arrays carry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilda_schema import Cache, open_cache
from hilda_schema.testing import tiny_cache

COLUMNS = ("index", "key", "scene", "stamp_ns", "prev", "next", "part", "row", "points", "pairs", "absent")
NOT_ZARR = "ignore:Object at .* is not recognized as a component of a Zarr hierarchy"  # seal.json, manifest.json


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cache(tmp_path_factory.mktemp("stores") / "cache", points=50)


@pytest.fixture(scope="module")
def cache(store: Path) -> Cache:
    return open_cache(store)


def check_rows(found: list[dict[str, Any]], cache: Cache) -> None:
    for row, expected in zip(found, cache.frames.to_pylist(), strict=True):
        assert {name: row[name] for name in COLUMNS} == {name: expected[name] for name in COLUMNS}
        for name in ("world_SE3_lidar", "world_SE3_ego"):
            assert list(row[name]) == expected[name]


def test_the_table_opens_in_pandas(store: Path, cache: Cache) -> None:
    pd = pytest.importorskip("pandas")
    frames = pd.read_parquet(store / "frames.parquet")
    rows = frames.astype(object).where(frames.notna(), None).to_dict("records")
    check_rows(rows, cache)
    assert frames.groupby("scene")["points"].sum().to_dict() == {"scene-0000": 250, "scene-0001": 200}


def test_the_table_opens_in_polars(store: Path, cache: Cache) -> None:
    pl = pytest.importorskip("polars")
    frames = pl.read_parquet(store / "frames.parquet")
    check_rows(frames.to_dicts(), cache)
    assert frames.filter(pl.col("absent") != "{}")["frame"].to_list() == ["000001", "000001"]


def test_the_table_opens_in_duckdb(store: Path, cache: Cache) -> None:
    duckdb = pytest.importorskip("duckdb")
    query = duckdb.sql(f"SELECT * FROM '{store / 'frames.parquet'}' ORDER BY index")
    names = [each[0] for each in query.description]
    check_rows([dict(zip(names, row, strict=True)) for row in query.fetchall()], cache)


def arrays(store: Path) -> dict[str, dict[str, Any]]:
    """Array -> its metadata, of the first part."""
    part = store / "parts" / json.loads((store / "manifest.json").read_bytes())["parts"][0]["part"]
    metadata = {path.parent: json.loads(path.read_bytes()) for path in sorted(part.rglob("zarr.json"))}
    return {str(path): meta for path, meta in metadata.items() if meta["node_type"] == "array"}


def expected_of(cache: Cache, name: str) -> np.ndarray | None:
    """What our reader says of some of the arrays of the first part."""
    frames = [frame for frame in cache if cache.frames["part"][frame.index].as_py() == cache.parts[0].part]
    stacked = {
        "vit/layer_2/tokens": lambda: np.stack([frame.token_grid("vit", 2) for frame in frames]).astype(np.float16),
        "vit/global": lambda: np.stack([frame.global_tokens("vit") for frame in frames]).astype(np.float16),
        "points/xyz_m": lambda: np.concatenate([frame.points.xyz_m for frame in frames]),
        "points/label": lambda: np.concatenate([frame.points.label for frame in frames]),
        "pairs/point": lambda: np.concatenate([frame.pairs.point for frame in frames]),
        "present": lambda: np.stack([frame.present for frame in frames]),
    }
    return next((make() for path, make in stacked.items() if name.endswith(f"/{path}")), None)


def check_array(values: np.ndarray, dims: tuple[str, ...], path: str, meta: dict[str, Any], cache: Cache) -> bool:
    """Whether our reader could be compared with."""
    assert (list(values.shape), str(values.dtype), list(dims)) == (
        meta["shape"],
        meta["data_type"],
        meta["dimension_names"],
    )
    right = expected_of(cache, path)
    if right is not None:
        np.testing.assert_array_equal(values, right, strict=True)
    return right is not None


def test_arrays_open_in_zarr_python(store: Path, cache: Cache) -> None:
    import zarr

    compared = 0
    for path, meta in arrays(store).items():
        array = zarr.open_array(path, mode="r")
        compared += check_array(array[...], array.metadata.dimension_names, path, meta, cache)
        assert array.attrs.asdict() == meta["attributes"]
    assert compared == 6


@pytest.mark.filterwarnings(NOT_ZARR)
def test_the_store_is_one_hierarchy_in_zarr_python(store: Path, cache: Cache) -> None:
    import zarr

    root = zarr.open_group(store, mode="r")
    assert root.attrs["hilda"]["recipe_digest"] == cache.manifest.recipe.digest()
    assert {name for name, _ in root["parts"].groups()} == {entry.part for entry in cache.parts}


def test_arrays_open_in_tensorstore(store: Path, cache: Cache) -> None:
    ts = pytest.importorskip("tensorstore")
    compared = 0
    for path, meta in arrays(store).items():
        array = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}, read=True).result()
        compared += check_array(np.asarray(array.read().result()), array.domain.labels, path, meta, cache)
    assert compared == 6


@pytest.mark.filterwarnings(NOT_ZARR)
def test_groups_open_in_xarray(store: Path, cache: Cache) -> None:
    xr = pytest.importorskip("xarray")
    by_path = arrays(store)
    part = store / "parts" / cache.parts[0].part
    compared = 0
    for group in (part, part / "points", part / "pairs", part / "vit", part / "vit" / "layer_2"):
        dataset = xr.open_zarr(group, zarr_format=3, consolidated=False, chunks=None, mask_and_scale=False)
        assert len(dataset.variables)
        for name, variable in dataset.variables.items():
            path = str(group / str(name))
            compared += check_array(variable.values, variable.dims, path, by_path[path], cache)
            assert variable.attrs.get("unit", "") == by_path[path]["attributes"].get("unit", "")
    assert compared == 6
