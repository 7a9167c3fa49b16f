"""What no copy may bring back."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest

from hilda_cache.reshape.subset import Cut
from hilda_cache.share.pull import plan_pull, pull
from hilda_cache.share.push import push
from hilda_schema.errors import CacheConflict
from hilda_schema.reader import open_cache
from hilda_schema.remote import RemoteStorage
from hilda_schema.storage import open_storage


def remote(url: str) -> RemoteStorage:
    storage = open_storage(url)
    assert isinstance(storage, RemoteStorage)
    return storage


def test_frames_that_were_removed_do_not_come_back(store: Path, tmp_path: Path) -> None:
    from hilda_cache.reshape.forget import forget

    url = "memory://refuse/store"
    less = Path(shutil.copytree(store, tmp_path / "less"))
    push(less, remote(url), jobs=1)
    forget(less, ["scene-0001"], [], "asked for by a person in it")
    with pytest.raises(CacheConflict, match="--replace"):
        push(less, remote(url), jobs=1)
    _, done = push(less, remote(url), jobs=1, replace=True)
    assert len(done.unlisted) == 1
    root = open_cache(url).manifest.root_sha256
    for replace in (False, True):
        with pytest.raises(CacheConflict, match=r"2 of the frames were removed from memory://.*bring them back"):
            push(store, remote(url), jobs=1, replace=replace)
    assert open_cache(url).manifest.root_sha256 == root
    with pytest.raises(CacheConflict, match=r"2 of the frames were removed from .*less on request"):
        pull(plan_pull(str(store)), less, jobs=1)
    assert len(open_cache(less)) == 2
    pull(plan_pull(url), tmp_path / "copy", jobs=1)
    assert open_cache(tmp_path / "copy").manifest.forgotten == open_cache(less).manifest.forgotten
    pull(plan_pull(url, Cut(scenes=("scene-0000",)), ""), tmp_path / "cut", jobs=1)
    assert open_cache(tmp_path / "cut").manifest.forgotten
    fsspec.filesystem("memory").rm("/refuse", recursive=True)
