"""Reads a JSON list of objects one object at a time: tables of gigabytes in a few megabytes of memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from hilda_cache.drives.files import _refuse_constant, _unique_keys, file_size
from hilda_schema.errors import DriveError, MissingSensor

MAX_TABLE_BYTES = 8 << 30  # several times the largest table of nuScenes
MAX_ROW_CHARS = 1 << 20  # a thousand times a long row

_CHUNK_CHARS = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_DAMAGED = "the file is damaged or incomplete: download it again"


def stream_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a table, in order; strict: no NaN, no key twice in a row, nothing after the list.

    Raises:
        DriveError: the table is not there, too large, not UTF-8 or not a JSON list of objects. Rows before the
            damage have been yielded by then.
    """
    try:
        file_size(path, MAX_TABLE_BYTES)
    except MissingSensor as error:  # a table is no sensor file
        raise DriveError(error.message, "give the folder that holds the whole metadata") from error
    try:
        with path.open(encoding="utf-8") as file:
            yield from _Rows(path, file)
    except UnicodeDecodeError as error:
        raise DriveError(f"{path} is not UTF-8 text", _DAMAGED) from error
    except OSError as error:
        raise DriveError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error


class _Rows:
    """A window on the text, moved forward as rows are taken from its start."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.file = file
        self.text = ""
        self.at = 0
        self.decoder = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._take("[")
        if self._mark() != "]":
            yield self._row()
            while self._mark() == ",":
                self.at += 1
                yield self._row()
        self._take("]")
        if self._mark():
            raise DriveError(f"{self.path} goes on after its list", _DAMAGED)

    def _more(self) -> bool:
        chunk = self.file.read(_CHUNK_CHARS)
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def _mark(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def _take(self, mark: str) -> None:
        if (found := self._mark()) != mark:
            what = f"{found!r} stands" if found else "the file ends"
            raise DriveError(f"{self.path} is not a JSON list of rows: {what} where {mark!r} was due", _DAMAGED)
        self.at += 1

    def _row(self) -> dict[str, Any]:
        self._take("{")
        self.at -= 1
        while True:
            try:
                row, self.at = self.decoder.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                # Perhaps the window ends inside the row.
                if len(self.text) - self.at > MAX_ROW_CHARS or not self._more():
                    raise DriveError(f"{self.path} is not valid JSON: {error}", _DAMAGED) from error
            else:
                return dict(row)
