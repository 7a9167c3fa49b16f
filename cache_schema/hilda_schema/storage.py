"""Reading files of a store without trusting what lies there; `hilda_schema.remote` does it behind a URL.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hilda_schema.errors import CacheCorrupt, CacheError, UsageError
from hilda_schema.manifest import FileSeal

OPEN_FILES = 256
"""Open files kept per store and process, a quarter of the usual limit of a process."""

PIN = "@sha256:"

IOV_MAX = 1024  # buffers that Linux and macOS take in one preadv


class Storage(ABC):
    """The files below one store. Paths are relative to it, "/"-separated, and have been checked by the caller."""

    listed: ClassVar[bool] = True
    """Whether a listing says what is there. Behind a URL it may be old: what is there is what can be read."""

    tries: ClassVar[int] = 1
    """How often bytes are read that do not match their checksum: a network may flip a bit that a second request has
    right; a disk that does is not asked again."""

    def __init__(self, name: str) -> None:
        self.name = name  # for messages and commands: without passwords or signatures
        self.pin = ""  # the root hash that the store must have, or its first digits; empty: any

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

    def read_chunks(
        self, path: str, sealed: FileSeal, stride: int, first: int, buffers: list[memoryview], *, again: bool = False
    ) -> None:
        """Fill buffers with neighbouring chunks of a sealed shard; a storage with a local copy may take them from it.

        Args:
            path: the shard.
            sealed: what the seal says of it.
            stride: bytes from one chunk to the next.
            first: the chunk that comes first.
            buffers: what to fill.
            again: what was read before did not match its checksums.

        Raises:
            CacheCorrupt: the file is not there or ends before the buffers are full.
        """
        self.read_into(path, first * stride, buffers)

    def _short(self, path: str) -> CacheCorrupt:
        return CacheCorrupt(f"{self.name}/{path} is shorter than it was sealed")


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """The storage behind a folder or URL; `file://` URLs are folders, other schemes go through fsspec.

    A store may be pinned: `URL@sha256:` and the digits of its root hash, at least the first 12.

    Raises:
        UsageError: what stands behind `@sha256:` is not that.
    """
    text, pin = split_pin(os.fspath(url))
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    storage: Storage
    if "://" in text:
        from hilda_schema.remote import RemoteStorage

        storage = RemoteStorage(text)
    else:
        storage = LocalStorage(text)
    storage.pin = pin
    return storage


def split_pin(url: str) -> tuple[str, str]:
    """A URL without its pin, and the digits of the pin; empty where it has none.

    Raises:
        UsageError: the pin is not 12 to 64 hexadecimal digits.
    """
    before, mark, digits = url.rpartition(PIN)
    if not mark:
        return url, ""
    if not re.fullmatch("[0-9a-f]{12,64}", digits):
        raise UsageError(
            f"{without_secrets(before)}: {PIN}{digits[:80]} does not name a store's content",
            "give 64 hexadecimal digits, or at least the first 12; hilda-cache info prints them",
        )
    return before, digits


def pinned(url: str, root_sha256: str) -> str:
    """The URL of a store, that opens with this content only."""
    return split_pin(url)[0] + PIN + root_sha256


def without_secrets(url: str) -> str:
    """A URL as it may be shown: no user, password, query or fragment."""
    return re.sub(r"(?<=://)[^/]*@", "", re.split(r"[?#]", url, maxsplit=1)[0]).rstrip("/")


class LocalStorage(Storage):
    """A folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        # Absolute, since a worker process may have another working directory.
        super().__init__(str(Path(root).absolute()))
        self._files = _OpenFiles()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.name, "pin": self.pin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LocalStorage.__init__(self, state["root"])
        self.pin = state["pin"]

    def read(self, path: str, limit: int) -> bytes:
        """See `Storage.read`."""
        full = f"{self.name}/{path}"
        with os.fdopen(_open_regular(full), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise CacheCorrupt(f"{full} is {size} bytes, {limit} is the most that can be right")
            return file.read(size)  # not `limit`: Python allocates what it is asked to read

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
        full = f"{self.name}/{path}"
        try:
            descriptor = self._files.take(full)
            try:
                for k in range(0, len(buffers), IOV_MAX):
                    some = buffers[k : k + IOV_MAX]
                    if not fill(descriptor, offset, some):
                        raise self._short(path)
                    offset += sum(map(len, some))
            finally:
                self._files.give_back(full, descriptor)
        except FileNotFoundError:
            raise CacheCorrupt(f"{full} is missing") from None
        except OSError as error:
            raise CacheError(f"{full} cannot be read: {error.strerror}") from error


def fill(descriptor: int, offset: int, buffers: list[memoryview]) -> bool:
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

    def take(self, path: str) -> int:
        """An open file, for this thread alone until it is given back."""
        if self._process != os.getpid():
            # Forked: the lock may be held by a thread that does not exist here. Inherited files stay open, idle.
            self._forget()
        with self._lock:
            descriptor = self._kept.pop(path, None)
        return _open_regular(path) if descriptor is None else descriptor

    def give_back(self, path: str, descriptor: int) -> None:
        """Keep a file for the next one who wants it."""
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
