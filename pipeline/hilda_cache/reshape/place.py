"""A sealed file or part of one store into another: by hard link where both lie on one file system, else by copy.

Hard links are safe here because nobody ever writes into a sealed file: a part is replaced by renaming a new folder in,
and removed by unlinking its names, which leaves the other store's names and bytes as they are. What a link is not is
a second copy: a disk that damages the bytes damages both stores, and bytes that must vanish have to vanish from both.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hilda_schema.errors import CacheCorrupt
from hilda_schema.manifest import FileSeal, PartEntry, Recipe, Seal
from hilda_schema.part import open_part, read_seal, verify_command
from hilda_schema.storage import LocalStorage, Storage
from hilda_schema.writer import make_part

PIECE_BYTES = 2**24


def place_part(source: Storage, part: str, recipe: Recipe, store: Path, seal_sha256: str | None = None) -> PartEntry:
    """Put a sealed part of one store into another, as it is.

    Args:
        source: the store that has it.
        part: its id.
        recipe: of both stores, selection aside.
        store: the other store's folder, started.
        seal_sha256: what the source's manifest says of the part's seal.

    Returns:
        The part, as the other store's manifest will list it.

    Raises:
        CacheCorrupt: the part is not what was sealed; nothing is then left under its name.
        CacheError: it cannot be written.
    """

    def write_files(folder: Path) -> Seal:
        open_part(source, part, recipe, seal_sha256)
        seal, _, _ = read_seal(source, part)
        for path, sealed in seal.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            place_file(source, f"parts/{part}/{path}", folder / path, sealed)
        return seal

    return make_part(store, recipe, part, write_files)


def place_file(source: Storage, path: str, target: Path, sealed: FileSeal) -> None:
    """Put one sealed file of a store under a new name; a copy is checked against the seal's hash.

    Raises:
        CacheCorrupt: the copy is not what was sealed.
        OSError: it cannot be written.
    """
    if isinstance(source, LocalStorage):
        try:
            os.link(f"{source.name}/{path}", target, follow_symlinks=False)
        except OSError:
            pass  # another file system, or one without links, or a file of somebody else
        else:
            return
    for _ in range(source.tries):
        if _copy(source, path, target, sealed.size) == sealed.sha256:
            return
        target.unlink()
    raise CacheCorrupt(f"{source.name}/{path} is not what was sealed", verify_command(source))


def _copy(source: Storage, path: str, target: Path, size: int) -> str:
    """Copy a file piece by piece; the sha256 of what was read."""
    digest, piece = hashlib.sha256(), bytearray(min(PIECE_BYTES, size))
    with target.open("xb") as file:
        for start in range(0, size, PIECE_BYTES):
            view = memoryview(piece)[: min(PIECE_BYTES, size - start)]
            source.read_into(path, start, [view])
            digest.update(view)
            file.write(view)
    return digest.hexdigest()
