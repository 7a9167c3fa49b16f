"""Which parts a verification that was interrupted has read: kept on this machine, beside the copies of remote stores.

Nothing is kept of a verification that ends, and nothing of parts that were not sound. What is kept names a part by its
seal's hash, so that a part which was replaced since is read again.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from hilda_schema.durable import write_atomically
from hilda_schema.manifest import PartEntry, sha256_hex
from hilda_schema.part_cache import cache_folder

FOLDER = "verified"
EVERY_S = 30.0
"""What a killed process loses at most, besides the part that it was reading."""

LIMIT = 2**28  # a million parts


class Progress:
    """What has been read of one store so far.

    Args:
        store: its name; two copies of one content are two things to read.
        resume: take up what an interrupted verification left; else begin anew.
    """

    def __init__(self, store: str, *, resume: bool) -> None:
        self._path = cache_folder() / FOLDER / sha256_hex(os.fsencode(store))[:32]
        self._read: set[str] = set()
        self._saved_at = time.monotonic()
        if resume:
            with suppress(OSError):
                if self._path.stat().st_size <= LIMIT:
                    self._read = set(self._path.read_text(errors="replace").splitlines())

    def __contains__(self, entry: PartEntry) -> bool:
        return self._line(entry) in self._read

    def add(self, entry: PartEntry) -> None:
        """A part has been read and is sound."""
        self._read.add(self._line(entry))
        if time.monotonic() - self._saved_at > EVERY_S:
            self.save()

    def save(self) -> None:
        """Keep it for the next process; a folder that cannot be written costs that and no more."""
        self._saved_at = time.monotonic()
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, "".join(f"{line}\n" for line in sorted(self._read)).encode())

    def clear(self) -> None:
        """It is done."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    @staticmethod
    def _line(entry: PartEntry) -> str:
        return f"{entry.part} {entry.seal_sha256}"
