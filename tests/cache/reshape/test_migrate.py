"""Stores of every schema that was ever released end in today's."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from hilda_cache.reshape import migrate as module
from hilda_cache.reshape.migrate import migrate, steps_of
from hilda_schema import open_cache
from hilda_schema.errors import CacheCorrupt, CacheNotFound, CacheVersion
from hilda_schema.manifest import SCHEMA_VERSIONS
from hilda_schema.testing import tiny_cache

GOLDEN = Path(__file__).resolve().parents[2] / "schema" / "golden"


@pytest.mark.parametrize("archive", sorted(GOLDEN.glob("schema-*.zip")), ids=lambda path: path.stem)
def test_a_store_of_every_released_schema_is_taken_to_todays(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    version = archive.stem.removeprefix("schema-")
    for store in sorted(tmp_path.iterdir()):
        left = migrate(store)
        assert (left == []) == (version in SCHEMA_VERSIONS)
        assert json.loads((store / "manifest.json").read_bytes())["schema_version"] in SCHEMA_VERSIONS
        assert len(open_cache(store)) == 2


def test_the_steps_lead_one_after_the_other_to_todays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tiny_cache(tmp_path / "store", scenes=1, frames=1, points=20)
    path = store / "manifest.json"

    def to(version: str) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": version}))

    today = SCHEMA_VERSIONS[0]
    steps = {"0.8": ("0.9", lambda folder: to("0.9")), "0.9": (today, lambda folder: to(today))}
    monkeypatch.setattr(module, "STEPS", steps)
    to("0.8")
    assert steps_of(store) == ["0.8", "0.9"]
    assert migrate(store) == ["0.8", "0.9"]
    assert steps_of(store) == []


def test_what_is_no_store_or_a_newer_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFound):
        migrate(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(CacheCorrupt, match="does not say which schema"):
        migrate(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": "9.1"}')
    with pytest.raises(CacheVersion, match=r"has schema 9\.1"):
        migrate(tmp_path)
