"""Uniting stores of one recipe: the same parts once, the same frames once, in an order that nobody's order changes.

Parts are taken in reading order (scene, time, id), whichever store has them. A frame that several parts hold stays in
the first of them, where all hold the same bytes of it; a later part is cut to the frames that are new. So stores that
were cut alike (an extraction's parts, its subsets by scene) unite in any order and grouping to the same bytes, and
stores cut differently in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hilda_cache.extract import differences
from hilda_cache.reshape.derive import derive_part
from hilda_cache.reshape.target import FrameAt, History, Source, make_store, open_source, parent_of
from hilda_cache.reshape.words import table_text
from hilda_schema.errors import CacheConflict
from hilda_schema.manifest import (
    Forgotten,
    Manifest,
    Parent,
    PartEntry,
    SelectionInfo,
    canonical_json,
    sha256_hex,
)
from hilda_schema.part import OpenPart, open_part, read_seal


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the united store: a part of one source, or what is left of it."""

    source: Source
    entry: PartEntry
    rows: tuple[int, ...] | None  # that stay; None: all


def merge(urls: Sequence[str], out: Path, on_part: Callable[[int, int], None] = lambda done, total: None) -> Manifest:
    """Unite stores.

    Args:
        urls: folders or URLs, in any order; one that is given twice counts once.
        out: folder of the new store.
        on_part: called with parts done and parts planned.

    Raises:
        CacheConflict: their recipes differ, they hold different bytes for one part or frame, or one holds a frame that
            was removed from another on request; each with a table of what differs.
        CacheError: a store is damaged or not complete, or the new one cannot be written.
    """
    # Sorted and each once, so that neither order nor repetition changes a byte. Stores of one content may differ in
    # their histories.
    found = {source.manifest.self_sha256: source for source in map(open_source, urls)}
    sources = [found[digest] for digest in sorted(found)]
    for other in sources[1:]:
        refuse_other_recipe(sources[0], other)
    pieces = plan_merge(sources)
    recipe = sources[0].manifest.recipe.model_copy(update={"selection": _selection(sources)})
    refuse_forgotten(sources, pieces)

    def make(piece: Piece) -> PartEntry:
        entry, storage = piece.entry, piece.source.storage
        return derive_part(storage, entry.part, recipe, out, recipe, piece.rows, entry.seal_sha256)

    return make_store(out, sources, recipe, united_history(sources), pieces, make, on_part)


def refuse_other_recipe(one: Source, other: Source) -> None:
    """Stores of two recipes hold features that must not be mixed.

    Raises:
        CacheConflict: with a table of the fields that differ.
    """
    a, b = (each.manifest.recipe.model_dump(mode="json", exclude={"selection"}) for each in (one, other))
    if rows := differences(a, b):
        raise CacheConflict(
            f"{one.name} and {other.name} were made with different recipes:\n"
            + table_text(("field", _leaf(one), _leaf(other)), rows),
            "extract one of them again with the options of the other (hilda-cache info shows them)",
        )


def _leaf(source: Source) -> str:
    return source.name.rsplit("/", 1)[-1]


def plan_merge(sources: Sequence[Source]) -> list[Piece]:
    """Which parts the united store gets, in reading order.

    Raises:
        CacheConflict: two stores hold different bytes for one part or frame.
    """
    held: dict[str, tuple[Source, PartEntry]] = {}
    for source in sources:
        for entry in source.manifest.parts:
            other, known = held.setdefault(entry.part, (source, entry))
            if known.seal_sha256 != entry.seal_sha256:
                raise _two_contents(entry.part, other, source)
    parts = sorted(held.values(), key=lambda each: (each[1].scene, _frames(each)[0].stamp_ns, each[1].part))
    owner: dict[str, tuple[Source, PartEntry, int]] = {}
    pieces, differing = [], []
    for source, entry in parts:
        kept = []
        for frame in _frames((source, entry)):
            if (known_frame := owner.setdefault(frame.key, (source, entry, frame.row))) == (source, entry, frame.row):
                kept.append(frame.row)
            elif what := _differing(known_frame, (source, entry, frame.row)):
                differing.append((frame.key, what, known_frame[1].part[:12], entry.part[:12]))
        if kept:
            pieces.append(Piece(source, entry, tuple(kept) if len(kept) < entry.frames else None))
    if differing:
        names = " and ".join(_leaf(source) for source in sources)
        raise CacheConflict(
            f"{names} hold {len(differing)} frames twice, with different content:\n"
            + table_text(("frame", "what differs", "part", "other part"), differing),
            "leave them out of all but one, e.g. with: hilda-cache subset STORE --scenes NAME,... --out OTHER",
        )
    return pieces


def _frames(part: tuple[Source, PartEntry]) -> list[FrameAt]:
    return part[0].frames[part[1].part]


def _two_contents(part: str, one: Source, other: Source) -> CacheConflict:
    a, b = (read_seal(each.storage, part)[0].model_dump(mode="json", exclude={"self_sha256"}) for each in (one, other))
    rows = differences(a, b)
    return CacheConflict(
        f"{one.name} and {other.name} hold different bytes for part {part}:\n"
        + table_text(("seal", _leaf(one), _leaf(other)), rows),
        "they were made by different versions of what computes features: compare `software` in hilda-cache info --json",
    )


def _differing(one: tuple[Source, PartEntry, int], other: tuple[Source, PartEntry, int]) -> str:
    """What differs between two copies of a frame, in words; empty where nothing does."""
    found = []
    for source, entry, row in (one, other):
        opened, _ = open_part(source.storage, entry.part, source.manifest.recipe, entry.seal_sha256)
        found.append((opened, row))
    (a, row_a), (b, row_b) = found
    rows = differences(a.frames[row_a].model_dump(mode="json"), b.frames[row_b].model_dump(mode="json"))
    if a.cameras != b.cameras:
        rows.append(("image sizes", "", ""))
    if rows:
        return ", ".join(str(row[0]) for row in rows)
    if a.arrays.keys() != b.arrays.keys():
        return ", ".join(sorted(a.arrays.keys() ^ b.arrays.keys()))
    pairs = zip(_frame_arrays(a, row_a), _frame_arrays(b, row_b), strict=True)
    return ", ".join(path for (path, one_of), (_, other_of) in pairs if one_of.tobytes() != other_of.tobytes())


def _frame_arrays(part: OpenPart, row: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Everything that is stored of a frame, array by array, sorted by path."""
    for path, spec in sorted(part.arrays.items()):
        first = spec.dims[0]
        if first == "frame":
            yield path, part.read_rows(path, row, row + 1, row)
        elif first in ("point", "pair"):
            yield path, part.read_rows(path, *part.edges(f"{first}s", row), row)
        elif first == "channel":
            yield path, part.read_whole(path)


def refuse_forgotten(sources: Sequence[Source], pieces: Sequence[Piece]) -> None:
    """What was removed from one store on request must not come back from another.

    Raises:
        CacheConflict: naming the frame and the store that still has it.
    """
    removed = {digest: source for source in sources for each in source.manifest.forgotten for digest in each.frames}
    for piece in pieces:
        for frame in _frames((piece.source, piece.entry)):
            clean = removed.get(sha256_hex(frame.key.encode()))
            if clean is not None and (piece.rows is None or frame.row in piece.rows):
                raise CacheConflict(
                    f"frame {frame.key} was removed from {clean.name} on request, and {piece.source.name} still has it",
                    f"remove it there too: hilda-cache forget {piece.source.name} --frames {frame.key} --reason TEXT",
                )


def united_history(sources: Sequence[Source]) -> History:
    """The history of a merge: a merge of merges is told as one merge."""
    parents: dict[bytes, Parent] = {}
    forgotten: dict[bytes, Forgotten] = {}
    software: dict[str, set[str]] = {}
    for source in sources:
        manifest = source.manifest
        merged = bool(manifest.parents) and all(each.operation == "merge" for each in manifest.parents)
        for parent in manifest.parents if merged else (parent_of(manifest, "merge", ""),):
            parents[canonical_json(parent.model_dump(mode="json"))] = parent
        for request in manifest.forgotten:
            forgotten[canonical_json(request.model_dump(mode="json"))] = request
        for name, versions in manifest.software.items():
            software.setdefault(name, set()).update(versions.split(", "))
    return History(
        tuple(parents[key] for key in sorted(parents, key=lambda key: (parents[key].root_sha256, key))),
        tuple(forgotten[key] for key in sorted(forgotten)),
        {name: ", ".join(sorted(versions)) for name, versions in software.items()},
    )


def _selection(sources: Sequence[Source]) -> SelectionInfo:
    """What was asked for in all of them; the whole where that has no simpler words."""
    asked = [source.manifest.recipe.selection for source in sources]
    named = [each.scenes for each in asked if each.scenes is not None]
    scenes = tuple(sorted({name for names in named for name in names})) if len(named) == len(asked) else None
    frames = {each.frames for each in asked}
    return SelectionInfo(scenes=scenes, frames=frames.pop() if len(frames) == 1 else ":")
