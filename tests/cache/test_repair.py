"""`hilda-cache repair`, which errors about a damaged root tell people to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from hilda_cache.lock import NAME, locked
from hilda_cache.reshape.commands import repair
from hilda_schema import open_cache
from hilda_schema.errors import CacheConflict, CacheCorrupt, UsageError
from hilda_schema.testing import tiny_cache, validate


def test_a_damaged_root_comes_back_from_the_parts(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    root_sha256 = open_cache(store).manifest.root_sha256
    (store / "manifest.json").write_bytes(b"{}")
    (store / "frames.parquet").unlink()
    with pytest.raises(CacheCorrupt) as caught:
        open_cache(store)
    command, told = caught.value.remedy.split(": ")[1].rsplit(" ", 1)
    assert command == "hilda-cache repair"
    repair(told, drop_damaged=False)
    validate(store)
    assert open_cache(store).manifest.root_sha256 == root_sha256
    assert not (store / NAME).exists()


def test_it_writes_beside_nobody_and_only_to_a_cache_that_is_here(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache", scenes=1, frames=3)
    before = (store / "manifest.json").read_bytes()
    with locked(store), pytest.raises(CacheConflict, match="being written"):
        repair(str(store), drop_damaged=False)
    assert (store / "manifest.json").read_bytes() == before
    for elsewhere in (tmp_path / "nowhere", tmp_path, "s3://bucket/cache"):
        with pytest.raises(UsageError, match="no folder of parts"):
            repair(str(elsewhere), drop_damaged=False)


def test_it_does_not_vouch_for_a_damaged_part(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache", scenes=1, frames=3)
    shard = next(store.rglob("vit/global/c.0.0.0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CacheCorrupt, match=r"vit/global/c\.0\.0\.0"):
        repair(str(store), drop_damaged=False)
