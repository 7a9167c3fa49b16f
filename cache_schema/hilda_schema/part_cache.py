"""A bounded local copy of what was read from remote stores, shared by processes, least recently used out first.

    HILDA_CACHE_DIR     where: by default `hilda` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)
    HILDA_CACHE_BYTES   how much at most: by default 10GB; 0 keeps nothing, and every read goes to the store

What is kept are blocks: runs of neighbouring chunks of one sealed file, named by the file's sha256 and their place in
it. A block gets its name when every chunk in it has the seal's checksum, and readers compare that checksum again on
every read, so a block that was damaged since, on disk or by a power cut, is fetched anew and never believed.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hilda_schema.errors import UsageError
from hilda_schema.manifest import FileSeal
from hilda_schema.remote import RemoteStorage
from hilda_schema.shard import CRC_BYTES, crc32c
from hilda_schema.storage import Storage, fill

FOLDER_VARIABLE, BYTES_VARIABLE = "HILDA_CACHE_DIR", "HILDA_CACHE_BYTES"
DEFAULT_BYTES = 10_000_000_000
BLOCK_BYTES = 2**22
"""Chunks are fetched together up to this size: one request for the pairs of many frames, one for a token grid."""

KEPT_AFTER_EVICTION = 0.9  # of the bound, so that not every block has to make room for itself
STALE_S = 3600.0  # a temporary file that is older belongs to a writer that died
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_numbers = itertools.count()


def keeping_blocks(storage: Storage) -> Storage:
    """The same storage, with a local copy of what is read where it is remote and the environment allows it.

    Raises:
        UsageError: HILDA_CACHE_BYTES is not a size.
    """
    if not isinstance(storage, RemoteStorage) or not max_bytes():
        return storage
    kept = CachedStorage(storage.url)
    kept.pin = storage.pin
    return kept


def max_bytes() -> int:
    """What HILDA_CACHE_BYTES says.

    Raises:
        UsageError: it is not a size.
    """
    text = os.environ.get(BYTES_VARIABLE, "").strip()
    if not text:
        return DEFAULT_BYTES
    if not (found := re.fullmatch(r"(\d{1,18}) ?([KMGT]?)B?", text, re.IGNORECASE)):
        raise UsageError(f"{BYTES_VARIABLE}={text[:80]!r} is not a size", "write bytes, or e.g. 20GB; 0 keeps nothing")
    return int(found[1]) * UNITS[found[2].upper()]


def cache_folder() -> Path:
    """What HILDA_CACHE_DIR says, else the place for such things of this user."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hilda"


class CachedStorage(RemoteStorage):
    """A remote storage whose chunks are kept here."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._blocks = BlockCache(cache_folder(), max_bytes())

    def read_chunks(
        self, path: str, sealed: FileSeal, stride: int, first: int, buffers: list[memoryview], *, again: bool = False
    ) -> None:
        """See `Storage.read_chunks`; from the blocks that hold them, which are fetched where they are not here."""
        crcs = sealed.chunk_crc32c or ()
        stop = first + sum(map(len, buffers)) // stride
        per_block = max(1, BLOCK_BYTES // stride)
        for block in range(first // per_block, -(-stop // per_block)):
            start, end = block * per_block, min((block + 1) * per_block, len(crcs))
            here, there = max(first, start), min(stop, end)
            some = buffers[2 * (here - first) : 2 * (there - first)]  # a chunk and its checksum have one each
            name = f"{sealed.sha256}-{per_block}-{block}"
            if again:
                self._blocks.drop(name)
            if self._blocks.read(name, (end - start) * stride, (here - start) * stride, some):
                continue
            data = bytearray((end - start) * stride)
            self.read_into(path, start * stride, [memoryview(data)])
            if _sound(data, stride, crcs[start:end]):
                self._blocks.put(name, data)
            _copy(memoryview(data)[(here - start) * stride :], some)


def _sound(data: bytearray, stride: int, crcs: tuple[int, ...]) -> bool:
    """Whether every chunk of a block is the one that was sealed."""
    chunks = (memoryview(data)[k : k + stride] for k in range(0, len(data), stride))
    return all(
        crc32c(chunk[:-CRC_BYTES]) == crc == struct.unpack("<I", chunk[-CRC_BYTES:])[0]
        for chunk, crc in zip(chunks, crcs, strict=True)
    )


def _copy(data: memoryview, buffers: list[memoryview]) -> None:
    for buffer in buffers:
        buffer[:] = data[: len(buffer)]
        data = data[len(buffer) :]


@dataclass(slots=True)
class BlockCache:
    """A folder of files of bounded size together. Any number of threads and processes may use it.

    It only saves time: where it cannot be read or written, that is said once and reading goes on without it.
    """

    folder: Path
    max_bytes: int
    _failed: bool = False

    def read(self, name: str, size: int, offset: int, buffers: list[memoryview]) -> bool:
        """Fill buffers from a block, which then counts as used now; False where it is not here.

        Args:
            name: of the block.
            size: of the whole block; one of another size was not written to its end.
            offset: in the block.
            buffers: what to fill.
        """
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            return self._give_up(error)
        try:
            if os.fstat(descriptor).st_size != size:
                return False
            os.utime(descriptor)
            return fill(descriptor, offset, buffers)
        except OSError as error:
            return self._give_up(error)
        finally:
            os.close(descriptor)

    def put(self, name: str, data: bytes | bytearray) -> None:
        """Keep a block, and let go of those that were not used for longest where there is no room for it."""
        if self._failed or len(data) > self.max_bytes:
            return
        path = self._path(name)
        temporary = self.folder / f".tmp-{os.getpid()}-{threading.get_ident()}-{next(_numbers)}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(exist_ok=True)
            with temporary.open("xb") as file:
                file.write(data)
            with self._room_for(len(data)):
                temporary.replace(path)
        except OSError as error:
            self._give_up(error)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def drop(self, name: str) -> None:
        """Forget a block."""
        with suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _give_up(self, error: OSError) -> bool:
        if not self._failed:
            self._failed = True
            warnings.warn(
                f"{self.folder} keeps no copies of what is read: {error.strerror}; set {FOLDER_VARIABLE} to another "
                f"folder, or {BYTES_VARIABLE}=0",
                stacklevel=2,
            )
        return False

    @contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        """Hold the folder while a block of this size gets its name.

        The file that is locked holds the sum of all sizes. It is raised before the block is there, so that a writer
        that dies leaves it too high; counting anew, when room is needed, puts it right.
        """
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = os.pread(descriptor, 40, 0)
            total = int(text) if text.strip().isdigit() else self.max_bytes
            if total + size > self.max_bytes:
                total = self._evict(int(KEPT_AFTER_EVICTION * self.max_bytes) - size)
            os.pwrite(descriptor, b"%020d" % (total + size), 0)
            yield
        finally:
            os.close(descriptor)

    def _evict(self, most: int) -> int:
        """Remove blocks, the least recently used first, until they are no more than so many bytes; what is left."""
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):
                    status = path.stat(follow_symlinks=False)
                    if not name.startswith("."):
                        found.append((status.st_mtime_ns, status.st_size, path))
                    elif name.startswith(".tmp-") and status.st_mtime < time.time() - STALE_S:
                        path.unlink()
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= most:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total
