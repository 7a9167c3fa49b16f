"""Removing frames from a store in place, because somebody may ask for that: no byte of them stays in it.

    1  parts with such frames are made anew without them, beside the old ones; readers see the old store
    2  a partial manifest that names the request replaces the complete one: from here it is done, whatever happens
    3  the old parts are removed, and the root is derived from what is left

Killed before 2, nothing has changed; after it, the same command (or `repair`) does the rest. The manifest keeps the
sha256 of each removed frame's key: enough for `merge` and `extract` to refuse to bring it back, and for nobody to read
what it was.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hilda_cache.lock import locked
from hilda_cache.reshape.dataset_card import write_card
from hilda_cache.reshape.derive import derive_part, derived_id
from hilda_cache.reshape.prune import survey
from hilda_cache.reshape.subset import it_has
from hilda_cache.reshape.target import FrameAt, Source, open_source, parent_of
from hilda_schema.errors import CacheConflict, CacheIncomplete, UsageError
from hilda_schema.keys import Key
from hilda_schema.manifest import Forgotten, Manifest, Parent, Recipe, key_digests, sha256_hex
from hilda_schema.part import read_seal
from hilda_schema.storage import LocalStorage
from hilda_schema.writer import (
    existing_part,
    finish_store,
    read_manifest,
    remove_part,
    sealed_parts,
    sweep_temporary,
    write_manifest,
)

WITHHELD = "(withheld: it named what was removed)"


@dataclass(slots=True)
class ForgetReport:
    """What came of a request."""

    frames: int = 0
    rewritten: int = 0  # parts made anew without them
    dropped: int = 0  # parts of which nothing was left
    linked: int = 0  # removed files that other folders still hold by a hard link
    strangers: list[str] = field(default_factory=list)  # files beside the store that nobody here knows
    card: str = ""  # why README.md was left as it is; empty where it was written


def forget(store: Path, scenes: Collection[str], keys: Collection[str], reason: str) -> ForgetReport:
    """Remove frames from a store.

    Args:
        store: the store's folder.
        scenes: scenes to remove whole.
        keys: keys of single frames.
        reason: recorded in the manifest and on the card.

    Raises:
        UsageError: a scene or frame is not in the store, or nothing is named.
        CacheIncomplete: the store is not complete.
        CacheConflict: somebody writes to it.
        CacheError: it is damaged or cannot be written.
    """
    if not scenes and not keys:
        raise UsageError("nothing is named that should be removed", "give --scenes NAME,... or --frames KEY,...")
    if not reason.strip():
        raise UsageError("the reason is empty", "give --reason TEXT: the card tells it to everybody who gets the store")
    with locked(store):
        sweep_temporary(store)
        resumed = finish_forgetting(store)
        if read_manifest(store).state == "partial":
            raise CacheIncomplete(
                f"{store} is not complete",
                f"run its extraction again; or keep only what is there, with: hilda-cache repair {store}",
            )
        source = open_source(str(store))
        doomed = _doomed(source, set(scenes), set(keys), lenient=resumed is not None)
        report = _remove(store, source, doomed, reason) if doomed else resumed or ForgetReport()
        report.card = _write_card(store)
        return report


def _doomed(source: Source, scenes: set[str], keys: set[str], *, lenient: bool) -> set[str]:
    """Keys of the frames to remove; those that were removed before are left out.

    Args:
        source: the store.
        scenes: as asked.
        keys: as asked.
        lenient: whether this very request has just been finished, so that its names are gone already.
    """
    gone = {digest for each in source.manifest.forgotten for digest in each.frames}
    there = {frame.key: frame for frames in source.frames.values() for frame in frames}
    for scene in scenes - set(source.scenes):
        if not lenient:
            raise UsageError(f"scene {scene!r} is not in {source.name}", it_has(scene, source.scenes))
    for key in sorted(keys - there.keys()):
        if sha256_hex(key.encode()) not in gone:
            raise UsageError(f"frame {key!r} is not in {source.name}", it_has(key, list(there)))
    return {key for key, frame in there.items() if key in keys or frame.scene in scenes}


def _remove(store: Path, source: Source, doomed: set[str], reason: str) -> ForgetReport:
    manifest = source.manifest
    report = ForgetReport(frames=len(doomed))
    cleared = _cleared(manifest.recipe, source, doomed)
    rewritten = {}
    for entry in manifest.parts:
        frames = source.frames[entry.part]
        if rows := tuple(frame.row for frame in frames if frame.key not in doomed):
            if len(rows) < len(frames):
                kept = [frames[row].key for row in rows]
                rewritten[entry.part] = (derived_id(entry.part, manifest.recipe, cleared, kept), rows)
        else:
            report.dropped += 1
    report.rewritten = len(rewritten)
    # What nothing lists may hold the same frames: an older part, the beginnings of an interrupted request.
    wanted = {part for part, _ in rewritten.values()}
    for part in set(survey(store, manifest).unlisted) - wanted:
        remove_part(store, part)
    for part, (_, rows) in rewritten.items():
        derive_part(source.storage, part, manifest.recipe, store, cleared, rows)
    request = Forgotten(reason=reason, frames=tuple(sorted(sha256_hex(key.encode()) for key in doomed)))
    names = _names(source, doomed)
    write_manifest(
        store,
        Manifest(
            writer=manifest.writer,
            recipe=cleared,
            state="partial",
            planned_parts=len(manifest.parts) - report.dropped,
            software=manifest.software,
            parents=_history(manifest, names),
            forgotten=(*manifest.forgotten, request),
        ),
    )
    finished = finish_forgetting(store)
    report.linked = finished.linked if finished else 0
    report.strangers = survey(store, read_manifest(store)).unknown
    return report


def _cleared(recipe: Recipe, source: Source, doomed: set[str]) -> Recipe:
    """The recipe, with no scene in its selection of which nothing is left; its digest stays."""
    if recipe.selection.scenes is None:
        return recipe
    left = {frame.scene for frame in _all(source) if frame.key not in doomed}
    gone = {frame.scene for frame in _all(source)} - left
    scenes = tuple(name for name in recipe.selection.scenes if name not in gone)
    return recipe.model_copy(update={"selection": recipe.selection.model_copy(update={"scenes": scenes})})


def _all(source: Source) -> list[FrameAt]:
    return [frame for frames in source.frames.values() for frame in frames]


def _names(source: Source, doomed: set[str]) -> set[str]:
    """Words that name what is removed."""
    left = {frame.scene for frame in _all(source) if frame.key not in doomed}
    scenes = {frame.scene for frame in _all(source)} - left
    return doomed | {Key.parse(key).frame for key in doomed} | scenes


def _history(manifest: Manifest, names: set[str]) -> tuple[Parent, ...]:
    """Requests one after the other are one step of the history; the manifest's `forgotten` tells them apart."""
    before = manifest.parents
    if not (len(before) == 1 and before[0].operation == "forget"):
        before = (parent_of(manifest, "forget", ""),)
    return tuple(_without(parent, names) for parent in before)


def _without(parent: Parent, names: set[str]) -> Parent:
    named = names & set(re.split(r"[\s,'\"]+", parent.detail))
    return parent.model_copy(
        update={
            "detail": WITHHELD if named else parent.detail,
            "parents": tuple(_without(each, names) for each in parent.parents),
        }
    )


def finish_forgetting(store: Path) -> ForgetReport | None:
    """Do the rest of a request whose manifest is written; None where there is none. Hold the store's lock.

    Raises:
        CacheIncomplete: a part that should be left is not there.
        CacheError: a part is damaged, or the store cannot be written.
    """
    manifest = read_manifest(store)
    if manifest.state != "partial" or not _asked(manifest.parents):
        return None
    gone = {digest for each in manifest.forgotten for digest in each.frames}
    report, storage, recipe = ForgetReport(), LocalStorage(store), manifest.recipe
    for part in sealed_parts(store):
        seal, _, _ = read_seal(storage, part)
        if removed := key_digests(seal) & gone:
            report.frames += len(removed)
            files = [path for path in (store / "parts" / part).rglob("*") if path.is_file()]
            report.linked += sum(path.stat().st_nlink > 1 for path in files)
            remove_part(store, part)
    parts = [existing_part(store, part, recipe.digest(), recipe) for part in sealed_parts(store)]
    finish_store(store, recipe, [entry for entry in parts if entry is not None])
    return report


def _asked(parents: Sequence[Parent]) -> bool:
    return len(parents) == 1 and parents[0].operation == "forget"


def _write_card(store: Path) -> str:
    """Write README.md anew, unless it is somebody else's; why not, or nothing."""
    try:
        write_card(store)
    except CacheConflict as error:
        return error.message
    return ""
