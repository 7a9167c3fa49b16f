"""Files of a store behind a URL, by fsspec: bounded waiting, errors of one line, no secret in them.

Credentials come from where the scheme's own tools look for them (environment, profile, instance), never from a store.
What is there is what can be read: a listing may be old, so nothing but a message for people ever depends on one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheError, CacheNotFound, UsageError
from hilda_schema.storage import Storage, without_secrets

TIMEOUT_VARIABLE = "HILDA_REMOTE_TIMEOUT_S"
TIMEOUT_S = 60.0
"""How long a request may take, besides moving its bytes."""

SLOWEST_BYTES_PER_S = 50_000
"""What one request among several at a time gets of the slowest connection that is waited for."""

TRIES = 2  # of a request that was not answered in time; what is answered with an error, fsspec's libraries repeat
PIECE_BYTES = 2**23  # the most that one request reads
POLL_S = 0.2
GUESSED_BYTES = 2**17  # of a small file whose size is not known

PUT_OPTIONS = {
    # Memory of an upload: by default 50 MB pieces, ten at a time.
    "s3": {"chunksize": 2**24, "max_concurrency": 2},
    "gs": {"chunksize": 2**24},
}
EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
"""Scheme -> the extra that brings its library."""

CREATES = {"s3", "gs", "gcs"}
"""Schemes that can write a file only where there is none."""

VERSIONED = {"s3"}
"""Schemes that can write a file only over a version that was seen."""

WITHOUT_FOLDERS = {"s3", "gs", "gcs", "hf", "abfs", "memory"}


class Stopped(Exception):
    """A request was given up because `RemoteStorage.stop` was called."""


class RemoteStorage(Storage):
    """Files behind a URL. The connection is made in the process that uses it."""

    listed = False
    tries = 2

    def __init__(self, url: str) -> None:
        super().__init__(without_secrets(url))
        self.url = url
        self._stopped = threading.Event()
        self._process = -1
        self._connected: tuple[Any, str] = (None, "")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "pin": self.pin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, state["url"])
        self.pin = state["pin"]

    def stop(self) -> None:
        """Give up all requests, also those that other threads wait for: they raise `Stopped`."""
        self._stopped.set()

    def read(self, path: str, limit: int) -> bytes:
        """See `Storage.read`."""
        data = bytearray()
        while True:
            wanted = min(PIECE_BYTES, limit + 1 - len(data))
            piece = self._cat(path, len(data), wanted)
            data += piece
            if len(data) > limit:
                raise self._large(path, limit)
            if len(piece) < wanted:
                return bytes(data)

    def read_many(self, paths: Sequence[str], limit: int) -> list[bytes]:
        """See `Storage.read_many`; all at once where the file system can."""
        found = self.read_found(paths, limit)
        for path, each in zip(paths, found, strict=True):
            if each is None:
                raise FileNotFoundError(errno.ENOENT, "no such file", f"{self.name}/{path}")
        return [each for each in found if each is not None]

    def read_found(self, paths: Sequence[str], limit: int) -> list[bytes | None]:
        """Read several small files, None for one that is not there; errors as in `read`."""
        root, count = self._filesystem()[1], len(paths)
        full, ends, above = [f"{root}/{path}" for path in paths], [limit + 1] * count, os.path.commonpath(paths)
        found: list[bytes | Exception] = self._call(
            "cat_ranges", above, full, [0] * count, ends, on_error="return", moved=count * GUESSED_BYTES
        )
        return [self._small(path, each, limit) for path, each in zip(paths, found, strict=True)]

    def _small(self, path: str, found: bytes | Exception, limit: int) -> bytes | None:
        if isinstance(found, FileNotFoundError):
            return None
        if isinstance(found, Exception):
            if not _is_past_end(found):
                self._raise(path, found)
            return b""
        if len(found) > limit:
            raise self._large(path, limit)
        return bytes(found)

    def _large(self, path: str, limit: int) -> CacheCorrupt:
        return CacheCorrupt(f"{self.name}/{path} is larger than {limit} bytes, the most that can be right")

    def read_into(self, path: str, offset: int, buffers: list[memoryview]) -> None:
        """See `Storage.read_into`; one request where the buffers are no larger than a piece."""
        for start, stop in _pieces(sum(map(len, buffers))):
            try:
                data = self._cat(path, offset + start, stop - start)
            except FileNotFoundError:
                raise CacheCorrupt(f"{self.name}/{path} is missing") from None
            if len(data) != stop - start:
                raise self._short(path)
            _scatter(data, buffers, start)

    def _cat(self, path: str, offset: int, size: int) -> bytes:
        """Bytes of a file; fewer where it ends."""
        full = f"{self._filesystem()[1]}/{path}"
        try:
            data: bytes = self._call("cat_file", path, full, start=offset, end=offset + size, moved=size)
        except _PastEnd:
            return b""
        return data

    def walk(self, folder: str) -> dict[str, int | None]:
        """See `Storage.walk`; what the listing says, which may be old."""
        filesystem, root = self._filesystem()
        filesystem.invalidate_cache()
        full = f"{root}/{folder}".rstrip("/")
        with suppress(FileNotFoundError):
            found = self._call("find", folder, full, detail=True)
            start = len(full.strip("/")) + 1
            return {path.lstrip("/")[start:]: int(info["size"]) for path, info in found.items()}
        return {}

    def folders(self, folder: str) -> list[str]:
        """See `Storage.folders`; what the listing says, which may be old."""
        filesystem, root = self._filesystem()
        filesystem.invalidate_cache()
        try:
            entries = self._call("ls", folder, f"{root}/{folder}", detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")

    def write_many(self, files: Mapping[str, bytes]) -> None:
        """Write several small files, each all or nothing; at once where the file system can.

        Raises:
            CacheError: any of them may or may not be there: an answer that is lost looks like a request that is.
        """
        root = self._filesystem()[1]
        for folder in sorted({f"{root}/{path}".rsplit("/", 1)[0] for path in files}):
            self._make_folder(folder)
        contents = {f"{root}/{path}": data for path, data in files.items()}
        with self._placed():
            self._call("pipe", next(iter(files), ""), contents, moved=sum(map(len, files.values())))

    def version(self, path: str) -> str | None:
        """What the server calls the file as it is now: its ETag; "" where it has no name for it, None for no file."""
        filesystem, root = self._filesystem()
        scheme = _scheme(filesystem)
        if scheme not in CREATES:
            return ""
        try:
            info = self._call("info", path, f"{root}/{path}", **({"refresh": True} if scheme == "s3" else {}))
        except FileNotFoundError:
            return None
        return None if info["type"] != "file" else str(info.get("ETag", "")) if scheme in VERSIONED else ""

    def write_over(self, path: str, data: bytes, version: str | None) -> None:
        """Write a small file, all or nothing, where the server can check it only over the version that was seen.

        Args:
            path: below the store.
            data: its content.
            version: what `version` said of it before; where that is "", any version is overwritten.

        Raises:
            CacheConflict: the file is another one by now; or it is this one, and an answer was lost.
            CacheError: it may or may not be there, as in `write_many`.
        """
        if version == "":
            self.write_many({path: data})
            return
        full = f"{self._filesystem()[1]}/{path}"
        # Ceph's gateway compares what stands between the quotes of an ETag with the whole of it.
        ways = [version, version.strip('"')] if version else [None]
        for way in ways:
            condition = {"mode": "create"} if way is None else {"IfMatch": way}
            try:
                self._call("pipe_file", path, full, data, moved=len(data), **condition)
            except _Unsupported:
                self.write_many({path: data})
            except CacheConflict:
                if way == ways[-1] or self.version(path) != version:
                    raise
                continue
            return

    def put(self, path: str, source: Path, size: int) -> None:
        """Write a file from one here, in pieces; errors as in `write_many`."""
        filesystem, root = self._filesystem()
        options = PUT_OPTIONS.get(_scheme(filesystem), {})
        full = f"{root}/{path}"
        self._make_folder(full.rsplit("/", 1)[0])
        with self._placed():
            self._call("put_file", path, str(source), full, moved=size, **options)

    def remove(self, path: str) -> None:
        """Remove a file; nothing where it is not there."""
        with suppress(FileNotFoundError):
            self._call("rm_file", path, f"{self._filesystem()[1]}/{path}")

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """What a server says to a write where its bucket is not there, told as that."""
        try:
            yield
        except FileNotFoundError:
            raise CacheNotFound(
                f"{self.name} cannot be written: its bucket is not there", "make the bucket first, or correct the URL"
            ) from None

    def _make_folder(self, folder: str) -> None:
        """Make a folder, where the place has folders: object stores have none."""
        filesystem, _ = self._filesystem()
        if _scheme(filesystem) not in WITHOUT_FOLDERS:
            self._call("makedirs", "", folder, exist_ok=True)

    def _filesystem(self) -> tuple[Any, str]:
        """The file system that fsspec finds, and the store's path in it."""
        if self._process != os.getpid():
            from fsspec.core import url_to_fs

            try:
                filesystem, root = url_to_fs(self.url)
            except Exception as error:  # any library that a scheme names
                raise CacheError(f"{self.name} cannot be opened: {_reason(error)}", _install(self.url)) from None
            self._connected, self._process = (filesystem, root.rstrip("/")), os.getpid()
            self._stopped = threading.Event()
        return self._connected

    def _call(self, method: str, path: str, *args: Any, moved: int = 0, **kwargs: Any) -> Any:
        """Let the file system do something, in bounded time.

        Args:
            method: its method.
            path: below the store, for messages.
            args: of the method.
            moved: bytes that it reads or writes.
            kwargs: of the method.

        Raises:
            FileNotFoundError: there is no such file.
            CacheError: anything else.
        """
        filesystem, _ = self._filesystem()
        if self._stopped.is_set():
            raise Stopped
        seconds = _timeout_s() + moved / SLOWEST_BYTES_PER_S
        for _ in range(TRIES):
            try:
                return self._bounded(filesystem, method, seconds, *args, **kwargs)
            except TimeoutError:
                continue
            except Stopped:
                raise
            except Exception as error:  # whatever the scheme's library raises
                self._raise(path, error)
        where = f"{self.name}/{path}".rstrip("/")
        raise CacheError(
            f"{where}: no answer in {seconds:.0f} s, {TRIES} times",
            f"look at the network and run the same command again; {TIMEOUT_VARIABLE} sets how long it waits",
        )

    def _bounded(self, filesystem: Any, method: str, seconds: float, *args: Any, **kwargs: Any) -> Any:
        """One try of a call. A file system that is not asynchronous cannot be interrupted: its own limits hold."""
        if not getattr(filesystem, "async_impl", False):
            return getattr(filesystem, method)(*args, **kwargs)
        work = getattr(filesystem, f"_{method}")(*args, **kwargs)
        future = asyncio.run_coroutine_threadsafe(work, filesystem.loop)
        deadline = time.monotonic() + seconds
        try:
            while not concurrent.futures.wait([future], timeout=POLL_S).done:
                if self._stopped.is_set():
                    raise Stopped
                if time.monotonic() > deadline:
                    raise TimeoutError
            return future.result()
        finally:
            future.cancel()

    def _raise(self, path: str, error: Exception) -> NoReturn:
        """Turn what a remote file system raises into our errors, without the URL's secrets."""
        where = f"{self.name}/{path}".rstrip("/")
        if _is_past_end(error):
            raise _PastEnd(f"{where} ends before what is asked of it") from None
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, "no such file", where) from None
        if _refusal(error) in CONDITION_FAILED or isinstance(error, FileExistsError):
            raise CacheConflict(f"{where} was written by somebody else meanwhile") from None
        if _refusal(error) in CONDITION_UNKNOWN:
            raise _Unsupported(f"{where}: the server knows no conditional writes") from None
        if type(error).__name__ == "FlexibleChecksumError":  # of botocore: the server says what it sent
            raise CacheCorrupt(f"{where} came with other bytes than were sent") from None
        if isinstance(error, PermissionError):
            raise CacheError(
                f"{where}: access is refused: {_reason(error)}",
                "renew or correct the credentials, then run the same command again: what is done is kept",
            ) from None
        raise CacheError(
            f"{where} cannot be reached: {_reason(error)}", "run the same command again: what is done is kept"
        ) from None


CONDITION_FAILED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
CONDITION_UNKNOWN = {"NotImplemented", "501"}


def _refusal(error: BaseException | None) -> str:
    """The code with which a server of S3's protocol refuses; fsspec's error has it in what caused it."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


class _Unsupported(CacheError):
    """The server does not know what is asked of it."""


class _PastEnd(CacheError):
    """What is asked for lies behind a file's end."""


def _is_past_end(error: Exception) -> bool:
    """Whether a server says so: HTTP status 416."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if status == 416 or _refusal(error) in ("InvalidRange", "416"):
        return True
    return isinstance(error, OSError) and "range is not satisfiable" in str(error)


def _pieces(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + PIECE_BYTES, size)) for start in range(0, size, PIECE_BYTES)]


def _scatter(data: bytes, buffers: list[memoryview], start: int) -> None:
    """Lay bytes into buffers that lie end to end, from a position on."""
    rest = memoryview(data)
    for buffer in buffers:
        if start < len(buffer) and rest:
            count = min(len(buffer) - start, len(rest))
            buffer[start : start + count] = rest[:count]
            rest, start = rest[count:], 0
        else:
            start -= len(buffer)


def _timeout_s() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text or TIMEOUT_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{TIMEOUT_VARIABLE}={text[:80]!r} is not a number of seconds")
    return seconds


def _scheme(filesystem: Any) -> str:
    protocol = filesystem.protocol
    return str(protocol if isinstance(protocol, str) else protocol[0])


def _install(url: str) -> str:
    """How to get a scheme's library."""
    scheme = url.split("://")[0]
    if extra := EXTRAS.get(scheme):
        return f"install what reads {scheme}://: pip install 'hilda-lidar[{extra}]'"
    return "install what fsspec needs for this scheme, e.g. adlfs for abfs://"


def _reason(error: Exception) -> str:
    """First line of an error, without what may be secret in it."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    line = text.strip().splitlines()[0][:300]
    line = re.sub(r"\w+://\S+", lambda url: without_secrets(url[0]), line)
    return re.sub(r"(?i)\b([\w-]*(?:signature|token|secret|password|credential)[\w-]*)=\S+", r"\1=...", line)
