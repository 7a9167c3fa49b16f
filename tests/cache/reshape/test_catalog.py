"""Which stores lie under a place: every one a row, with the numbers of its card or the reason why there are none."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import fsspec
import pytest

from hilda_cache.card import totals
from hilda_cache.reshape.catalog import catalog, catalog_json, catalog_text
from hilda_cache.reshape.words import fitted_table
from hilda_schema import open_cache
from hilda_schema.testing import tiny_cache


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    tiny_cache(place / "team" / "grids", scenes=1, points=40)
    tiny_cache(place / "points", kind="point", dtype="int8", scenes=1, points=40, store_points=False)
    tiny_cache(place / "unfinished", scenes=1, points=40, finish=False)
    tiny_cache(place / "damaged", scenes=1, frames=1, points=40)
    (place / "damaged" / "manifest.json").write_bytes(b"{}")
    tiny_cache(place / "headless", scenes=1, frames=1, points=40)
    (place / "headless" / "manifest.json").unlink()
    newer = tiny_cache(place / "newer", scenes=1, frames=1, points=40) / "manifest.json"
    newer.write_bytes(newer.read_bytes().replace(b'"schema_version":"1.0"', b'"schema_version":"9.0"'))
    (place / "empty").mkdir()
    (place / ".hidden").mkdir()
    return place


def test_every_store_is_a_row_or_a_reason(place: Path) -> None:
    os.utime(place / "team" / "grids" / "manifest.json", (86_400, 86_400))
    rows = {row.store: row for row in catalog(str(place))}
    assert list(rows) == sorted(["team/grids", "points", "unfinished", "damaged", "headless", "newer"])
    row, cache = rows["team/grids"], open_cache(place / "team" / "grids")
    sums = totals(cache)
    assert (row.frames, row.scenes, row.bytes) == (sums["frames"], sums["scenes"], sums["bytes"])
    assert row.coverage == sums["points_seen"] / sums["points"]
    assert row.root_sha256 == cache.manifest.root_sha256
    assert (row.dataset, row.version, row.encoding, row.state) == ("toy", "1", "grid float16", "complete")
    assert row.teachers == ("vit: 2, 4", "cnn: stage1, stage2")
    assert row.licences == ("Apache-2.0",)
    assert row.modified == "1970-01-02T00:00:00+00:00"
    assert (rows["points"].encoding, rows["unfinished"].state) == ("point int8", "partial")
    assert "checksum" in rows["damaged"].problem or "schema" in rows["damaged"].problem
    assert "missing, but there are parts" in rows["headless"].problem
    assert "has schema 9.0" in rows["newer"].problem
    assert json.loads(json.dumps(catalog_json(list(rows.values()))))[0]["store"] == "damaged"


def test_a_store_itself_and_a_remote_place(place: Path) -> None:
    (row,) = catalog(str(place / "points"))
    assert (row.store, row.encoding) == (".", "point int8")
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(place / "points"), "/catalog/far/points", recursive=True)
    try:
        (far,) = catalog("memory://catalog")
    finally:
        filesystem.rm("/catalog", recursive=True)
    assert (far.store, far.root_sha256, far.frames) == ("far/points", row.root_sha256, row.frames)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_table_fits_the_terminal(place: Path, width: int) -> None:
    text = catalog_text(catalog(str(place)), width)
    table = [line for line in text.splitlines() if not line.startswith("cannot be read: ")]
    assert max(map(len, table)) <= width
    assert len(table) == 4 + (width < 200)  # a narrow one says what it leaves out
    assert table[0].split()[:3] == ["store", "dataset", "teachers"]
    unread = [line for line in text.splitlines() if line not in table]
    assert [line.split(":")[1].strip() for line in unread] == ["damaged", "headless", "newer"]


def test_columns_are_cut_and_names_cannot_leave_their_cell() -> None:
    rows = [("x" * 50, "one\nline\x1b[31m", "gone")]
    text = fitted_table(("a", "b", "c"), rows, flexible=("a",), droppable=("c",), width=26)
    assert [len(line) <= 26 for line in text.splitlines()[:2]] == [True, True]
    assert text.splitlines()[1].endswith("…  one?line?[31m")
    assert text.splitlines()[2] == "(1 column left out; --json has all)"


def test_a_file_or_a_pipe_gets_every_column_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    with (tmp_path / "list.txt").open("w") as file:
        monkeypatch.setattr(sys, "__stdout__", file)
        text = fitted_table(("a", "b"), [("x" * 200, "y")], flexible=("a",), droppable=("b",))
    assert text.splitlines()[1] == f"{'x' * 200}  y"
