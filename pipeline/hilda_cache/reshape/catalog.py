"""Which stores lie under a folder or URL, and what is in them; one that cannot be read is listed with the reason."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hilda_cache.card import totals
from hilda_cache.reshape.words import fitted_table
from hilda_schema.errors import CacheNotFound, HildaError
from hilda_schema.reader import Cache, open_cache
from hilda_schema.root import MANIFEST
from hilda_schema.storage import LocalStorage, Storage, open_storage
from hilda_schema.terminal import human_bytes

FLEXIBLE = ("store", "dataset", "teachers", "licence")
DROPPABLE = ("licence", "scenes", "seen", "written", "encoding", "content")
MAX_DEPTH = 6  # folders below the one that was asked for


@dataclass(frozen=True, slots=True)
class Row:
    """One store."""

    store: str  # its folder below the place that was asked for; "." for that place itself
    problem: str = ""  # why it cannot be read; the rest is then empty
    dataset: str = ""
    version: str = ""
    teachers: tuple[str, ...] = ()  # "dinov2: 11, 12"
    encoding: str = ""
    scenes: int = 0
    frames: int = 0
    bytes: int = 0
    coverage: float = 0.0  # of points that a camera sees
    licences: tuple[str, ...] = ()  # of the teachers' weights
    root_sha256: str = ""
    state: str = ""
    modified: str = ""  # of its manifest, ISO 8601 in UTC; empty where the storage does not say


def catalog(uri: str) -> list[Row]:
    """The stores under a folder or URL, by name.

    Raises:
        CacheError: the place itself cannot be listed.
    """
    storage = open_storage(uri)
    return sorted(_rows(storage, uri.rstrip("/"), "", MAX_DEPTH), key=lambda row: row.store)


def _rows(storage: Storage, uri: str, folder: str, depth: int) -> Iterator[Row]:
    name = folder or "."
    try:
        names = storage.folders(folder)
    except HildaError as error:
        if not folder:
            raise
        yield Row(name, problem=error.message)
        return
    if (row := _row(f"{uri}/{folder}".rstrip("/"), name, headless="parts" in names)) is not None:
        yield row
    elif depth:
        for each in names:
            if not each.startswith("."):
                yield from _rows(storage, uri, f"{folder}/{each}".lstrip("/"), depth - 1)


def _row(url: str, name: str, *, headless: bool) -> Row | None:
    """The row of a folder; None where it is no store. One with parts but no manifest is one that cannot be read."""
    try:
        return _described(open_cache(url, allow_partial=True), name, _modified(url))
    except CacheNotFound as error:
        return Row(name, problem=error.message) if headless else None
    except HildaError as error:
        return Row(name, problem=error.message)


def _described(cache: Cache, name: str, modified: str) -> Row:
    manifest, sums = cache.manifest, totals(cache)
    recipe = manifest.recipe
    return Row(
        store=name,
        dataset=recipe.dataset.name,
        version=recipe.dataset.version,
        teachers=tuple(f"{each.name}: {', '.join(layer.name for layer in each.layers)}" for each in recipe.teachers),
        encoding=f"{recipe.encoding.kind} {recipe.encoding.dtype}",
        scenes=sums["scenes"],
        frames=sums["frames"],
        bytes=sums["bytes"],
        coverage=sums["points_seen"] / sums["points"] if sums["points"] else 0.0,
        licences=tuple(sorted({each.licence for each in recipe.teachers})),
        root_sha256=manifest.root_sha256,
        state=manifest.state,
        modified=modified,
    )


def _modified(url: str) -> str:
    """When a store's manifest was written, as far as the storage says."""
    storage = open_storage(url)
    if isinstance(storage, LocalStorage):
        stamp = Path(storage.name, MANIFEST).stat().st_mtime
        return datetime.datetime.fromtimestamp(stamp, datetime.UTC).isoformat(timespec="seconds")
    from fsspec.core import url_to_fs

    try:
        filesystem, root = url_to_fs(url)
        found = filesystem.modified(f"{root}/{MANIFEST}")
    except (OSError, NotImplementedError, ValueError, KeyError):
        return ""
    return str(found.astimezone(datetime.UTC).isoformat(timespec="seconds"))


def catalog_json(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows for scripts."""
    return [json.loads(json.dumps(asdict(row))) for row in rows]


def catalog_text(rows: list[Row], width: int | None = None) -> str:
    """The rows as a table no wider than the terminal, those that cannot be read below it."""
    header = ("store", "dataset", "teachers", "encoding", "scenes", "frames", "size", "seen", "licence", "content",
              "state", "written")  # fmt: skip
    lines = [
        (
            row.store,
            f"{row.dataset} {row.version}".strip(),
            "; ".join(row.teachers),
            row.encoding,
            f"{row.scenes:,}",
            f"{row.frames:,}",
            human_bytes(row.bytes),
            f"{row.coverage:.0%}",
            ", ".join(row.licences),
            row.root_sha256[:12],
            row.state,
            row.modified[:10],
        )
        for row in rows
        if not row.problem
    ]
    text = [fitted_table(header, lines, flexible=FLEXIBLE, droppable=DROPPABLE, width=width)] if lines else []
    return "\n".join([*text, *(f"cannot be read: {row.store}: {row.problem}" for row in rows if row.problem)])
