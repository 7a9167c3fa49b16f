"""Reading files of a store, on disk or behind a URL, without trusting what lies there.

On disk nothing but regular files and folders below the store is opened: no link is followed, no pipe is waited for.
Open files are kept, a bounded number per process, and belong to the process that opened them: after a fork, or in a
worker that received the object, they are opened anew.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hilda_schema.errors import CacheCorrupt, CacheError

OPEN_FILES = 256
"""Open files kept per store and process, a quarter of the usual limit of a process."""

IOV_MAX = 1024  # buffers that Linux and macOS take in one preadv


class Storage(ABC):
    """The files below one store. Paths are relative to it, "/"-separated, and have been checked by the caller."""

    def __init__(self, name: str) -> None:
        self.name = name  # for messages and commands: without passwords or signatures

    @abstractmethod
    def read(self, path: str, limit: int) -> bytes:
        """Read a whole small file.

        Raises:
            FileNotFoundError: it is not there.
            CacheCorrupt: it is larger than `limit`, or not a regular file.
        """

    def read_many(self, paths: Sequence[str], limit: int) -> list[bytes]:
        """Read several small files; errors as in `read`."""
        return [self.read(path, limit) for path in paths]

    @abstractmethod
    def walk(self, folder: str) -> dict[str, int | None]:
        """Everything below a folder that is not a folder -> its size in bytes, None for what is not a file.

        Paths are relative to the folder; links are listed, not followed; nothing where the folder is not there.
        """

    def sizes(self, folder: str) -> dict[str, int]:
        """Every file below a folder -> its size in bytes.

        Raises:
            CacheCorrupt: something there is neither a file nor a folder.
        """
        found: dict[str, int] = {}
        for path, size in self.walk(folder).items():
            if size is None:
                raise CacheCorrupt(f"{self.name}/{folder}/{path} is neither a file nor a folder (a link or a device)")
            found[path] = size
        return found

    @abstractmethod
    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly below a folder, sorted; none where it is not there."""

    @abstractmethod
    def read_into(self, path: str, offset: int, buffers: list[memoryview]) -> None:
        """Fill buffers, one after the other, from a position in a file.

        Raises:
            CacheCorrupt: the file is not there or ends before the buffers are full.
        """

    def _short(self, path: str) -> CacheCorrupt:
        return CacheCorrupt(f"{self.name}/{path} is shorter than it was sealed")


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """The storage behind a folder or URL; `file://` URLs are folders, other schemes go through fsspec."""
    text = os.fspath(url)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" not in text:
        return LocalStorage(text)
    return RemoteStorage(text)


def without_secrets(url: str) -> str:
    """A URL as it may be shown: no user, password, query or fragment."""
    return re.sub(r"(?<=://)[^/@]*@", "", re.split(r"[?#]", url, maxsplit=1)[0]).rstrip("/")


class LocalStorage(Storage):
    """A folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        # Absolute, since a worker process may have another working directory.
        super().__init__(str(Path(root).absolute()))
        self._files = _OpenFiles()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LocalStorage.__init__(self, state["root"])

    def read(self, path: str, limit: int) -> bytes:
        """See `Storage.read`."""
        full = f"{self.name}/{path}"
        with os.fdopen(_open_regular(full), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise CacheCorrupt(f"{full} is {size} bytes, {limit} is the most that can be right")
            return file.read(limit + 1)

    def walk(self, folder: str) -> dict[str, int | None]:
        """See `Storage.walk`."""
        found: dict[str, int | None] = {}
        step = ""
        for name in folder.split("/") if folder else ():
            step = f"{step}/{name}"
            if Path(self.name + step).is_symlink():
                return {"": None}
        waiting = [(f"{self.name}{step}", "")]
        while waiting:
            path, prefix = waiting.pop()
            for entry in _entries(path):
                # A name that is not text is shown, never used.
                name = prefix + entry.name.encode(errors="backslashreplace").decode()
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((entry.path, f"{name}/"))
                else:
                    found[name] = status.st_size if stat.S_ISREG(status.st_mode) else None
        return found

    def folders(self, folder: str) -> list[str]:
        """See `Storage.folders`."""
        return sorted(entry.name for entry in _entries(f"{self.name}/{folder}") if entry.is_dir(follow_symlinks=False))

    def read_into(self, path: str, offset: int, buffers: list[memoryview]) -> None:
        """See `Storage.read_into`."""
        try:
            with self._files.lease(f"{self.name}/{path}") as descriptor:
                for k in range(0, len(buffers), IOV_MAX):
                    some = buffers[k : k + IOV_MAX]
                    if not _fill(descriptor, offset, some):
                        raise self._short(path)
                    offset += sum(map(len, some))
        except FileNotFoundError:
            raise CacheCorrupt(f"{self.name}/{path} is missing") from None
        except OSError as error:
            raise CacheError(f"{self.name}/{path} cannot be read: {error.strerror}") from error


def _fill(descriptor: int, offset: int, buffers: list[memoryview]) -> bool:
    """Read until the buffers are full; False where the file ends first."""
    left = list(buffers)
    while left:
        got = os.preadv(descriptor, left, offset)
        if not got:
            return False
        offset += got
        while left and got >= len(left[0]):
            got -= len(left.pop(0))
        if got:
            left[0] = left[0][got:]
    return True


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder; nothing where it is not there."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CacheError(f"{folder} cannot be read: {error.strerror}") from error


def _open_regular(path: str) -> int:
    """Open a file for reading, if it is one."""
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except NotADirectoryError:
        raise FileNotFoundError(errno.ENOENT, "no such file", path) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CacheCorrupt(f"{path} is a link, which no cache holds") from None
        if error.errno == errno.ENOENT:
            raise
        raise CacheError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CacheCorrupt(f"{path} is not a file")
    return descriptor


class _OpenFiles:
    """Least recently used files, kept open; one in use is never closed under its user."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, int] = OrderedDict()  # idle files, oldest first

    @contextmanager
    def lease(self, path: str) -> Iterator[int]:
        """An open file; several threads may hold one each for the same path."""
        if self._process != os.getpid():
            # Forked: the lock may be held by a thread that does not exist here. Inherited files stay open, idle.
            self._forget()
        with self._lock:
            descriptor = self._kept.pop(path, None)
        if descriptor is None:
            descriptor = _open_regular(path)
        try:
            yield descriptor
        finally:
            self._give_back(path, descriptor)

    def _give_back(self, path: str, descriptor: int) -> None:
        surplus = []
        with self._lock:
            if path in self._kept:
                surplus.append(descriptor)
            else:
                self._kept[path] = descriptor
            while len(self._kept) > OPEN_FILES:
                surplus.append(self._kept.popitem(last=False)[1])
        for each in surplus:
            os.close(each)

    def __del__(self) -> None:
        for descriptor in self._kept.values():
            os.close(descriptor)


class RemoteStorage(Storage):
    """Files behind a URL, by fsspec. The connection is made in the process that uses it."""

    def __init__(self, url: str) -> None:
        super().__init__(without_secrets(url))
        self.url = url
        self._process = -1
        self._connected: tuple[Any, str] = (None, "")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RemoteStorage.__init__(self, state["url"])

    def _filesystem(self) -> tuple[Any, str]:
        if self._process != os.getpid():
            from fsspec.core import url_to_fs

            try:
                filesystem, root = url_to_fs(self.url)
            except (ImportError, ValueError) as error:
                raise CacheError(f"{self.name} cannot be opened: {error}") from None
            self._connected, self._process = (filesystem, root.rstrip("/")), os.getpid()
        return self._connected

    @contextmanager
    def _reported(self, path: str) -> Iterator[tuple[Any, str]]:
        """Turn what a remote file system raises into our errors, without the URL's secrets."""
        filesystem, root = self._filesystem()
        try:
            yield filesystem, f"{root}/{path}"
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such file", f"{self.name}/{path}") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise CacheError(f"{self.name}/{path} cannot be read: {reason}") from None

    def read(self, path: str, limit: int) -> bytes:
        """See `Storage.read`."""
        with self._reported(path) as (filesystem, full):
            data: bytes = filesystem.cat_file(full, start=0, end=limit + 1)
        if len(data) > limit:
            raise CacheCorrupt(f"{self.name}/{path} is larger than {limit} bytes, the most that can be right")
        return data

    def read_many(self, paths: Sequence[str], limit: int) -> list[bytes]:
        """See `Storage.read_many`; all at once where the file system can."""
        with self._reported(os.path.commonpath(paths) if paths else "") as (filesystem, _):
            root = self._filesystem()[1]
            data: list[bytes] = filesystem.cat_ranges(
                [f"{root}/{path}" for path in paths], [0] * len(paths), [limit + 1] * len(paths), on_error="raise"
            )
        for path, each in zip(paths, data, strict=True):
            if len(each) > limit:
                raise CacheCorrupt(f"{self.name}/{path} is larger than {limit} bytes, the most that can be right")
        return data

    def walk(self, folder: str) -> dict[str, int | None]:
        """See `Storage.walk`."""
        try:
            with self._reported(folder) as (filesystem, full):
                found = filesystem.find(full, detail=True)
        except FileNotFoundError:
            return {}
        start = len(full.strip("/")) + 1
        return {path.lstrip("/")[start:]: int(info["size"]) for path, info in found.items()}

    def folders(self, folder: str) -> list[str]:
        """See `Storage.folders`."""
        try:
            with self._reported(folder) as (filesystem, full):
                entries = filesystem.ls(full, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")

    def read_into(self, path: str, offset: int, buffers: list[memoryview]) -> None:
        """See `Storage.read_into`; one request."""
        total = sum(map(len, buffers))
        try:
            with self._reported(path) as (filesystem, full):
                data = filesystem.cat_file(full, start=offset, end=offset + total)
        except FileNotFoundError:
            raise CacheCorrupt(f"{self.name}/{path} is missing") from None
        if len(data) != total:
            raise self._short(path)
        rest = memoryview(data)
        for buffer in buffers:
            buffer[:] = rest[: len(buffer)]
            rest = rest[len(buffer) :]
