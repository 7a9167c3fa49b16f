"""A store made from stores: opened parents, a history, and one way to begin, fill and finish the new one.

Killed at any point, the same command goes on where it ended and writes the same bytes: parts appear whole or not at
all, are found again by their ids, and the root is derived from them at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from hilda_cache.extract import check_folder, made_folder
from hilda_cache.lock import locked
from hilda_schema.errors import CacheConflict, UsageError
from hilda_schema.manifest import GENERATIONS, EncodingError, Forgotten, Manifest, Parent, PartEntry, Recipe
from hilda_schema.reader import open_cache
from hilda_schema.storage import LocalStorage, Storage, open_storage
from hilda_schema.writer import finish_store, read_manifest, start_store, sweep_temporary

Plan = TypeVar("Plan")
Operation = Literal["merge", "subset", "reencode", "forget"]


@dataclass(frozen=True, slots=True)
class FrameAt:
    """Where a frame lies in a store."""

    key: str
    scene: str
    row: int  # in its part
    stamp_ns: int


@dataclass(frozen=True, slots=True)
class Source:
    """A complete store that something is made from."""

    storage: Storage
    manifest: Manifest
    frames: dict[str, list[FrameAt]]  # part id -> its frames, in order

    @property
    def name(self) -> str:
        """For messages."""
        return self.storage.name

    @property
    def scenes(self) -> list[str]:
        """Names of its scenes, sorted."""
        return sorted({entry.scene for entry in self.manifest.parts})


def open_source(url: str) -> Source:
    """Open a store to make another from.

    Raises:
        CacheError: it cannot be read, is damaged or not complete.
    """
    cache = open_cache(url)
    frames: dict[str, list[FrameAt]] = {}
    columns = (cache.frames[name].to_pylist() for name in ("part", "key", "scene", "row", "stamp_ns"))
    for part, key, scene, row, stamp_ns in zip(*columns, strict=True):
        frames.setdefault(part, []).append(FrameAt(key, scene, row, stamp_ns))
    return Source(open_storage(url), cache.manifest, frames)


@dataclass(frozen=True, slots=True)
class History:
    """What a manifest says of where a store comes from."""

    parents: tuple[Parent, ...]
    forgotten: tuple[Forgotten, ...]
    software: dict[str, str]


def history_of(
    manifest: Manifest, operation: Operation, detail: str, error: dict[str, EncodingError] | None = None
) -> History:
    """The history of a store made from one other."""
    return History((parent_of(manifest, operation, detail, error),), manifest.forgotten, manifest.software)


def parent_of(
    manifest: Manifest, operation: Operation, detail: str, error: dict[str, EncodingError] | None = None
) -> Parent:
    """A store as one made from it names it, as far back as a manifest tells."""
    return Parent(
        root_sha256=manifest.root_sha256,
        operation=operation,
        detail=detail,
        encoding_error=error or {},
        parents=tuple(_cut_off(each, GENERATIONS - 1) for each in manifest.parents),
    )


def _cut_off(parent: Parent, generations: int) -> Parent:
    older = tuple(_cut_off(each, generations - 1) for each in parent.parents) if generations > 1 else ()
    return parent.model_copy(update={"parents": older})


def make_store(
    out: Path,
    sources: Sequence[Source],
    recipe: Recipe,
    history: History,
    plans: Sequence[Plan],
    make: Callable[[Plan], PartEntry],
    on_part: Callable[[int, int], None],
) -> Manifest:
    """Make a store of parts that come from other stores, or go on making it.

    Args:
        out: its folder; made where it is not there.
        sources: what it is made from.
        recipe: its recipe.
        history: what its manifest says of them.
        plans: one for each part.
        make: makes a part, or finds it made.
        on_part: called with parts done and parts planned.

    Raises:
        UsageError: `out` is one of the sources.
        CacheConflict: `out` holds something else, or somebody writes to it.
        CacheError: a source is damaged, the disk is full, ...
    """
    for source in sources:
        if isinstance(source.storage, LocalStorage) and Path(source.storage.name).resolve() == out.resolve():
            raise UsageError(f"{out} is the store to read from", "give another folder with --out")
    check_folder(out)
    with made_folder(out), locked(out):
        sweep_temporary(out)
        settled = read_manifest(out) if (out / "manifest.json").exists() else None
        if settled is not None and _identity(settled) != (recipe, history.parents, history.forgotten):
            raise CacheConflict(f"{out} is another store", "give a new folder with --out, or remove this one first")

        def begin() -> None:
            start_store(out, recipe, len(plans), history.software, history.parents, history.forgotten)

        if settled is None or settled.state == "partial":
            begin()
        entries = []
        for plan in plans:
            entries.append(make(plan))
            on_part(len(entries), len(plans))
        if settled is not None and settled.state == "complete" and set(settled.parts) != set(entries):
            begin()
        return finish_store(out, recipe, entries)


def _identity(manifest: Manifest) -> tuple[Recipe, tuple[Parent, ...], tuple[Forgotten, ...]]:
    return manifest.recipe, manifest.parents, manifest.forgotten
