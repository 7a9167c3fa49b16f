"""The local copy of what was read from a URL: bounded, shared, never believed without a checksum."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from hilda_schema import part_cache
from hilda_schema.errors import CacheCorrupt, UsageError
from hilda_schema.part_cache import BlockCache, CachedStorage, cache_folder, max_bytes
from hilda_schema.reader import Cache, open_cache
from hilda_schema.remote import RemoteStorage
from hilda_schema.testing import tiny_cache

URL = "memory://part-cache/store"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store here and at `URL`; do not change it."""
    folder = tiny_cache(tmp_path_factory.mktemp("stores") / "cache")
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(folder), "/part-cache/store", recursive=True)
    yield folder
    filesystem.rm("/part-cache", recursive=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are kept."""
    monkeypatch.setenv("HILDA_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("HILDA_CACHE_BYTES", "10MB")
    return tmp_path / "kept"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(path, bytes) of every read of a shard that goes to the store."""
    found: list[tuple[str, int]] = []
    read_into = RemoteStorage.read_into

    def counted(self: Any, path: str, offset: int, buffers: list[memoryview]) -> None:
        found.append((path, sum(map(len, buffers))))
        read_into(self, path, offset, buffers)

    monkeypatch.setattr(RemoteStorage, "read_into", counted)
    return found


def everything(cache: Cache) -> list[Any]:
    values = []
    for frame in cache:
        values += [frame.points.xyz_m, frame.pairs.uv_px, frame.token_grid("vit", 4), frame.global_tokens("vit")]
    return values


def blocks(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def same(a: list[Any], b: list[Any]) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def test_what_was_read_is_not_read_again(store: Path, folder: Path, reads: list[tuple[str, int]]) -> None:
    here = everything(open_cache(store))
    assert same(everything(open_cache(URL)), here)
    first = len(reads)
    assert first > 30
    reads.clear()
    assert same(everything(open_cache(URL)), here)
    assert all(size < 500 for _, size in reads)  # indices only
    assert sum(path.stat().st_size for path in blocks(folder)) <= 10_000_000
    assert folder.stat().st_mode & 0o077 == 0
    assert not list(folder.rglob(".tmp-*"))


def test_it_can_be_switched_off(
    store: Path, folder: Path, reads: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HILDA_CACHE_BYTES", "0")
    for _ in range(2):
        reads.clear()
        assert same(everything(open_cache(URL)), everything(open_cache(store)))
    assert len(reads) > 30
    assert not folder.exists()


def test_a_block_that_was_damaged_is_fetched_again(store: Path, folder: Path, reads: list[tuple[str, int]]) -> None:
    here = everything(open_cache(store))
    everything(open_cache(URL))
    kept = blocks(folder)
    for number, path in enumerate(kept):
        data = bytearray(path.read_bytes())
        if number % 3 == 0:
            data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) - 1] if number % 3 == 1 else data)
    reads.clear()
    assert same(everything(open_cache(URL)), here)
    assert len([size for _, size in reads if size >= 500]) > 0
    reads.clear()
    assert same(everything(open_cache(URL)), here)
    assert all(size < 500 for _, size in reads)


def test_damage_at_the_store_is_never_kept(store: Path, folder: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    part = open_cache(URL).frames["part"][0].as_py()
    path = f"/part-cache/store/parts/{part}/points/xyz_m/c.0.0"
    whole = filesystem.cat_file(path)
    filesystem.pipe_file(path, whole[:40] + b"?" + whole[41:])
    try:
        frame = open_cache(URL)[0]
        with pytest.raises(CacheCorrupt, match="xyz_m"):
            _ = frame.points
        assert not [path for path in blocks(folder) if frame._part.shards["points/xyz_m"].sha256 in path.name]
    finally:
        filesystem.pipe_file(path, whole)
    assert len(open_cache(URL)[0].points) == 400


def test_equal_files_of_two_stores_are_kept_once(store: Path, folder: Path, reads: list[tuple[str, int]]) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(store), "/part-cache/twin", recursive=True)
    everything(open_cache(URL))
    reads.clear()
    everything(open_cache("memory://part-cache/twin"))
    assert all(size < 500 for _, size in reads)


def test_neighbouring_chunks_come_together(
    store: Path, folder: Path, reads: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any block size gives the same values; large ones need fewer requests."""
    here, counts = everything(open_cache(store)), []
    for size in (1, 700, 2**22):
        shutil.rmtree(folder, ignore_errors=True)
        monkeypatch.setattr(part_cache, "BLOCK_BYTES", size)
        reads.clear()
        assert same(everything(open_cache(URL)), here)
        counts.append(len(reads))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "kept", 1000)
    for number in range(9):
        cache.put(f"{number}-block", bytes([number]) * 100)
        os.utime(tmp_path / "kept" / f"{number}-" / f"{number}-block", ns=(number, number))
    found = bytearray(100)
    assert cache.read("0-block", 100, 0, [memoryview(found)])  # now the newest
    cache.put("a-block", b"a" * 200)
    left = {path.name for path in blocks(tmp_path / "kept")}
    assert "0-block" in left
    assert "a-block" in left
    assert not {"1-block", "2-block"} & left
    assert sum(path.stat().st_size for path in blocks(tmp_path / "kept")) <= 1000
    cache.put("b-block", b"b" * 1001)
    assert not cache.read("b-block", 1001, 0, [])


def _hammer(folder: str, seed: int, bound: int) -> None:
    rng = np.random.default_rng(seed)
    cache = BlockCache(Path(folder), bound)
    for _ in range(100):
        number = int(rng.integers(60))
        size = 50 + number
        found = bytearray(size)
        if cache.read(f"{number:02d}x", size, 0, [memoryview(found)]):
            assert bytes(found) == bytes([number]) * size
        else:
            cache.put(f"{number:02d}x", bytes([number]) * size)
        with cache._room_for(0):  # while nobody puts or removes
            assert sum(path.stat().st_size for path in blocks(Path(folder))) <= bound


def test_processes_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=_hammer, args=(str(tmp_path / "kept"), seed, 2000)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sum(path.stat().st_size for path in blocks(tmp_path / "kept")) <= 2000
    assert not list((tmp_path / "kept").glob(".tmp-*"))


def _die_while_writing(folder: str) -> None:
    cache = BlockCache(Path(folder), 10_000)
    for number in itertools.count():
        cache.put(f"{number:06d}", os.urandom(3000))


def test_killed_writers_leave_nothing_torn(tmp_path: Path) -> None:
    """kill -9 at random; what has a name is whole, the sum is right again after the next eviction."""
    context = multiprocessing.get_context("forkserver")
    folder = tmp_path / "kept"
    for attempt in range(4):
        writer = context.Process(target=_die_while_writing, args=(str(folder),))
        writer.start()
        while not blocks(folder):
            assert writer.is_alive()
        writer.join(0.01 * attempt)
        writer.kill()
        writer.join()
        assert all(path.stat().st_size == 3000 for path in blocks(folder))
    for path in folder.glob(".tmp-*"):
        os.utime(path, (0, 0))
    cache = BlockCache(folder, 10_000)
    for number in range(5):
        cache.put(f"z{number}", bytes(3000))
    assert not list(folder.glob(".tmp-*"))
    assert sum(path.stat().st_size for path in blocks(folder)) <= 10_000


def test_where_it_cannot_be_written_reading_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HILDA_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("HILDA_CACHE_BYTES", "1GB")
    with pytest.warns(UserWarning, match="keeps no copies of what is read.*HILDA_CACHE_BYTES=0") as told:
        assert same(everything(open_cache(URL)), everything(open_cache(store)))
    assert len(told) == 1


def test_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text, size in (("", 10_000_000_000), ("0", 0), ("123", 123), ("20GB", 2 * 10**10), ("5 t", 5 * 10**12)):
        monkeypatch.setenv("HILDA_CACHE_BYTES", text)
        assert max_bytes() == size
    for text in ("much", "-1", "1.5GB", "9" * 30):
        monkeypatch.setenv("HILDA_CACHE_BYTES", text)
        with pytest.raises(UsageError, match="is not a size"):
            max_bytes()
    monkeypatch.delenv("HILDA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hilda"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/hilda"


def test_a_store_on_disk_is_not_copied(store: Path, folder: Path) -> None:
    everything(open_cache(store))
    assert not folder.exists()
    assert not isinstance(open_cache(store)._storage, CachedStorage)
