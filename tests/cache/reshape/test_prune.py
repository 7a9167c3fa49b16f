"""What does not belong to a store: leftovers go, strangers stay and are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hilda_cache.lock import locked
from hilda_cache.reshape.prune import prune
from hilda_cache.reshape.subset import Cut, subset
from hilda_schema.errors import CacheConflict
from hilda_schema.testing import tiny_cache, validate
from hilda_schema.verify import verify

Tree = Callable[[Path], dict[str, str]]


def test_leftovers_go_and_strangers_stay(tree: Tree, tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "store", points=40)
    whole = tree(store)
    subset(str(store), tmp_path / "other", Cut(cameras=("BACK",)), "")
    stale = next(path for path in (tmp_path / "other" / "parts").iterdir() if (path / "seal.json").exists())
    shutil.copytree(stale, store / "parts" / stale.name)
    (store / "parts" / ".tmp-dead-1-0").mkdir()
    (store / "parts" / ".tmp-dead-1-0" / "half").write_text("half")
    (store / "parts" / "notes").mkdir()
    (store / "parts" / "notes" / "todo.txt").write_text("todo")
    (store / "parts" / "torn").mkdir()
    (store / "parts" / "torn" / "seal.json").write_text("{")
    (store / "photo.jpg").write_bytes(b"")
    unknown = ["parts/notes", "parts/torn", "photo.jpg"]

    before = tree(store)
    would = prune(store, dry_run=True)
    assert tree(store) == before
    found = prune(store, dry_run=False)
    assert (found.temporary, found.unlisted) == (would.temporary, would.unlisted) == ([".tmp-dead-1-0"], [stale.name])
    assert sorted(found.unknown) == sorted(would.unknown) == unknown
    assert verify(store).extra == unknown
    for name in unknown:
        path = store / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert tree(store) == whole
    validate(store)


def test_an_unfinished_store_keeps_its_parts(tree: Tree, tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "store", scenes=1, points=40, finish=False)
    before = tree(store)
    (store / "parts" / ".tmp-dead-1-0").write_text("half")
    assert prune(store, dry_run=False).temporary == [".tmp-dead-1-0"]
    assert tree(store) == before


def test_nothing_is_removed_beside_a_writer(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "store", scenes=1, points=40)
    (store / "parts" / ".tmp-alive-1-0").write_text("half")
    with locked(store), pytest.raises(CacheConflict, match="being written"):
        prune(store, dry_run=False)
    assert (store / "parts" / ".tmp-alive-1-0").exists()
