"""One extraction at a time per store, by a lock that dies with its holder.

The kernel drops a `flock` when its process ends, however it ends, so there is no stale lock to break. The file says
who holds it, for the message only.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hilda_schema.durable import writing
from hilda_schema.errors import CacheConflict

NAME = ".lock"


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store; the lock file is removed on the way out.

    Raises:
        CacheConflict: another process holds it, naming host and pid.
        CacheError: the folder cannot be written.
    """
    path = store / NAME
    while True:
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise CacheConflict(
                f"{store} is being written by {holder}", "wait for it, or stop it and run the command again"
            ) from None
        # The holder before us may have removed the file between our open and our lock: then ours is no lock at all.
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            break
        os.close(descriptor)
    try:
        with writing(path):
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
