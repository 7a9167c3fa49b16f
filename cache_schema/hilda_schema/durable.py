"""Writing so that a crash, a full disk or a power cut leaves either the old state or the new one.

Everything is written under a temporary name in the store's `parts` folder, forced to disk, and renamed. What a dead
writer leaves behind is never under a final name, and `sweep_temporary` removes it.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hilda_schema.errors import CacheError, CacheFull

TEMPORARY = ".tmp-"
PARTIAL = ".partial"  # ends the name of a single file while it is written
_numbers = itertools.count()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a failed write into one line.

    Raises:
        CacheFull: the disk is full, or a quota or limit is reached.
        CacheError: the folder is read-only, ...
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise CacheFull(
                f"disk full (or over quota) while writing {path}", "free some space and run the same command again"
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise CacheError(f"no permission to write {path}", "choose a folder that you may write to") from error
        raise CacheError(f"cannot write {path}: {error.strerror}") from error


def temporary_path(store: Path, stem: str) -> Path:
    """A name in the store's `parts` folder that nobody uses."""
    while True:
        path = store / "parts" / f"{TEMPORARY}{stem}-{os.getpid()}-{next(_numbers)}"
        if not os.path.lexists(path):
            return path


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and force it to disk."""
    with path.open("xb") as file:
        file.write(data)
    sync(path)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all; one process at a time.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    temporary = path.with_name(path.name + PARTIAL)
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Force a folder and all below it to disk.

    After all is written, not file by file: the first of many waits for the disk, the others find little left to do.
    """
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def replace_file(store: Path, name: str, data: bytes) -> None:
    """Give a file of the store new content, all or nothing.

    Args:
        store: the store's folder; its `parts` folder is there.
        name: path below the store.
        data: the content.

    Raises:
        CacheError: it cannot be written; the old content is still there.
    """
    final, temporary = store / name, temporary_path(store, Path(name).name)
    with writing(final):
        try:
            write_synced(temporary, data)
            temporary.replace(final)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync(final.parent)


def remove_tree(store: Path, path: Path) -> None:
    """Remove a folder of the store (or whatever lies in its place) so that it is never seen half removed."""
    aside = temporary_path(store, "removed")
    with writing(path):
        path.rename(aside)
        sync(path.parent)
        _delete(aside)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sweep_temporary(store: Path) -> list[str]:
    """Remove what dead writers left behind. Nobody may be writing to the store: hold its lock.

    Returns:
        The names removed, sorted.

    Raises:
        CacheError: something cannot be removed.
    """
    parts = store / "parts"
    if not parts.is_dir():
        return []
    swept = sorted(path for path in parts.iterdir() if path.name.startswith(TEMPORARY))
    for path in swept:
        with writing(path):
            _delete(path)
    return [path.name for path in swept]
