"""One file of a store, in pieces of bounded size, against the hash that its seal says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from hilda_schema.errors import CacheCorrupt
from hilda_schema.manifest import FileSeal
from hilda_schema.remote import PIECE_BYTES
from hilda_schema.storage import LocalStorage, Storage

SMALL_BYTES = 2**18
"""Files up to this size are moved together, a few at a time: a part has some 50 of them."""


def pieces(storage: Storage, path: str, size: int) -> Iterator[memoryview]:
    """A file's bytes; a piece is valid until the next one is asked for.

    Raises:
        CacheCorrupt: the file is not there, or shorter.
    """
    buffer = memoryview(bytearray(min(PIECE_BYTES, size)))
    for start in range(0, size, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, size - start)]
        storage.read_into(path, start, [piece])
        yield piece


def is_sound(storage: Storage, path: str, sealed: FileSeal) -> bool:
    """Whether a file is there, of the sealed size and with the sealed hash."""
    digest = hashlib.sha256()
    try:
        for piece in pieces(storage, path, sealed.size):
            digest.update(piece)
    except CacheCorrupt:
        return False
    if digest.hexdigest() != sealed.sha256:
        return False
    try:
        storage.read_into(path, sealed.size, [memoryview(bytearray(1))])
    except CacheCorrupt:
        return True  # it ends where it should
    return False


def fetch_file(source: Storage, path: str, folder: Path, name: str, sealed: FileSeal) -> int:
    """Copy a file of a store into a folder here, and hash what landed; one that is there already and sound stays.

    Args:
        source: the store.
        path: the file in it.
        folder: where it goes; nobody else writes there.
        name: its path below the folder.
        sealed: what it must be.

    Returns:
        Bytes copied.

    Raises:
        CacheCorrupt: two copies were not what was sealed; neither is left.
    """
    target = folder / name

    def landed() -> bool:
        return is_sound(LocalStorage(folder), name, sealed)  # anew each time: it keeps files open

    if landed():
        return 0
    what = f"{source.name}/{path} came twice with other bytes than were sealed"
    for tries in (1, 2):
        target.unlink(missing_ok=True)
        try:
            with target.open("xb") as file:
                for piece in pieces(source, path, sealed.size):
                    file.write(piece)
        except CacheCorrupt as error:  # it is not there, or shorter
            what = error.message
        if landed():
            return tries * sealed.size
    target.unlink()
    raise CacheCorrupt(what, f"see whether it is damaged there, or on the way: hilda-cache verify {source.name}")


def batches(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Small files in groups of bounded size together."""
    group: list[str] = []
    total = 0
    for path, size in sizes.items():
        if group and total + size > PIECE_BYTES:
            yield group
            group, total = [], 0
        group.append(path)
        total += size
    if group:
        yield group
