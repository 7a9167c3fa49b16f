"""A store from a folder or URL to a folder here: all of it, some scenes, or some teachers and layers.

A part is filled under a temporary name that the next run of the command finds again, hashed as it lies here, forced to
disk and renamed; the manifest is written last. Parts that lose teachers or layers are made by `hilda_cache.reshape`,
which reads only the files that stay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hilda_cache.extract import check_folder, made_folder
from hilda_cache.lock import locked
from hilda_cache.reshape.derive import check_derivable, derive_part, derived_id
from hilda_cache.reshape.subset import Cut, cut_recipe, plan_cut
from hilda_cache.reshape.target import History, Source, history_of, open_source
from hilda_cache.share.files import SMALL_BYTES, batches, fetch_file
from hilda_cache.share.pool import Moved, Transfer, move_parts
from hilda_cache.share.refuse import refuse_forgotten, refuse_other_recipe
from hilda_schema.durable import (
    TEMPORARY,
    remove_tree,
    replace_file,
    sweep_temporary,
    sync,
    sync_tree,
    write_synced,
    writing,
)
from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheFull
from hilda_schema.layout import group_metadata, root_metadata
from hilda_schema.manifest import Manifest, PartEntry, Recipe, Seal, sha256_hex
from hilda_schema.part import SEAL, arrays_of, check_seal, metadata_files
from hilda_schema.remote import RemoteStorage
from hilda_schema.root import FRAMES, FRAMES_LIMIT, GROUP, PARTS_GROUP, SIGNATURE, SIGNATURE_LIMIT, read_seals
from hilda_schema.storage import Storage
from hilda_schema.terminal import human_bytes
from hilda_schema.writer import existing_part, finish_store, read_manifest, sealed_parts, write_manifest


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A part that is to be here."""

    entry: PartEntry  # as the source lists it
    part: str  # its id here: another one where it loses teachers or layers

    @property
    def whole(self) -> bool:
        """Whether it stays as it is."""
        return self.part == self.entry.part


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What a pull brings."""

    source: Source
    recipe: Recipe  # of the store here
    history: History | None  # None: the whole store, which is then the same in every byte
    parts: tuple[PlannedPart, ...]

    @property
    def start(self) -> Manifest:
        """The manifest of the store here while it is not complete."""
        theirs = self.source.manifest
        return Manifest(
            writer=theirs.writer,
            recipe=self.recipe,
            state="partial",
            planned_parts=len(self.parts),
            software=theirs.software,
            parents=self.history.parents if self.history else theirs.parents,
            forgotten=theirs.forgotten,
        )


def plan_pull(url: str, cut: Cut | None = None, detail: str = "") -> PullPlan:
    """Say what is to be here.

    Args:
        url: folder or URL of the source.
        cut: which scenes, teachers and layers; None: the whole store.
        detail: the cut in words, for the manifest.

    Raises:
        UsageError: the cut names what is not there.
        CacheError: the source cannot be read, is damaged or not complete.
    """
    source = open_source(url)
    if cut is None:
        parts = tuple(PlannedPart(entry, entry.part) for entry in source.manifest.parts)
        return PullPlan(source, source.manifest.recipe, None, parts)
    old = source.manifest.recipe
    new = cut_recipe(old, cut)
    check_derivable(old, new)

    def planned(entry: PartEntry) -> PlannedPart:
        if new.digest() == old.digest():
            return PlannedPart(entry, entry.part)
        return PlannedPart(entry, derived_id(entry.part, old, new, [frame.key for frame in source.frames[entry.part]]))

    parts = tuple(planned(entry) for entry, _ in plan_cut(source, cut))
    return PullPlan(source, new, history_of(source.manifest, "subset", detail), parts)


def missing_parts(plan: PullPlan, store: Path) -> list[PlannedPart]:
    """The parts that are not here.

    Raises:
        CacheConflict: the folder holds another recipe, a part with other bytes, or parts that are not asked for; or
            frames were removed from it that would come back.
    """
    check_folder(store)
    if not (store / "manifest.json").exists():
        return list(plan.parts)
    settled = read_manifest(store)
    refuse_other_recipe(str(store), settled.recipe, plan.source.name, plan.recipe)
    keys = (frame.key for each in plan.parts for frame in plan.source.frames[each.entry.part])
    refuse_forgotten(str(store), settled, keys)
    if strange := sorted(set(sealed_parts(store)) - {each.part for each in plan.parts}):
        raise CacheConflict(
            f"{store} holds {len(strange)} parts that are not asked for, the first is {strange[0]}",
            "ask for their scenes too, or give another folder",
        )
    return [each for each in plan.parts if not _is_here(plan, store, each)]


def _is_here(plan: PullPlan, store: Path, each: PlannedPart) -> bool:
    found = existing_part(store, each.part, plan.recipe.digest(), plan.recipe)
    if found is not None and each.whole and found != each.entry:
        raise CacheConflict(
            f"part {each.part} (scene {each.entry.scene}) has other bytes in {store} than at {plan.source.name}, from "
            "the same inputs: it was made on another kind of machine",
            "pull into another folder",
        )
    return found is not None


def pull(
    plan: PullPlan, store: Path, *, jobs: int, on_part: Callable[[Transfer], None] = lambda transfer: None
) -> tuple[Manifest, Transfer]:
    """Bring a folder to hold what is planned.

    Args:
        plan: what.
        store: the folder; made where it is not there.
        jobs: parts at a time.
        on_part: called after every part.

    Returns:
        The manifest that is here now, and what was done.

    Raises:
        CacheConflict: the folder holds something else, or somebody writes to it.
        CacheCorrupt: parts came with other bytes than were sealed, twice; all others are here.
        CacheFull: the disk cannot hold it.
        CacheError: the source cannot be reached; the same call again goes on.
    """
    with made_folder(store), locked(store):
        missing = missing_parts(plan, store)
        refuse_full(store, sum(each.entry.bytes for each in missing if each.whole))
        settled = read_manifest(store) if (store / "manifest.json").exists() else None
        with writing(store):
            (store / "parts").mkdir(exist_ok=True)
        if settled is None or settled.state == "partial":
            write_manifest(store, plan.start)
        transfer = Transfer(Moved(kept_parts=len(plan.parts) - len(missing)))
        with stopping(plan.source.storage) as stop:
            move_parts(transfer, missing, lambda each: _bring(plan, store, each), jobs, stop, on_part)
        transfer.raise_damage()
        if settled is None or settled.state == "partial" or not _is_settled(plan, settled):
            write_manifest(store, plan.start)
            _finish(plan, store)
        sweep_temporary(store)
        return read_manifest(store), transfer


@contextmanager
def stopping(storage: Storage) -> Iterator[Callable[[], None]]:
    """What makes reads that other threads wait for give up, where the storage can."""
    yield storage.stop if isinstance(storage, RemoteStorage) else lambda: None


def refuse_full(store: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        CacheFull: naming both sizes.
    """
    free = shutil.disk_usage(store).free
    if size > free:
        raise CacheFull(
            f"{store} needs {human_bytes(size)} and has {human_bytes(free)} free",
            "free some space, give another folder, or pull less: --scenes, --teachers, --layers",
        )


def _is_settled(plan: PullPlan, settled: Manifest) -> bool:
    """Whether a complete manifest already says what the plan would make it say."""
    if plan.history is None:
        return settled == plan.source.manifest
    start = plan.start
    same = all(getattr(settled, name) == getattr(start, name) for name in ("recipe", "parents", "forgotten"))
    return same and len(settled.parts) == len(plan.parts)


def _bring(plan: PullPlan, store: Path, each: PlannedPart) -> Moved:
    """Make one part be here."""
    source, old, entry = plan.source.storage, plan.source.manifest.recipe, each.entry
    if each.whole:
        return _fetch_part(source, entry, store, plan.recipe)
    for attempt in range(2):
        try:
            made = derive_part(source, entry.part, old, store, plan.recipe, seal_sha256=entry.seal_sha256)
            return Moved(parts=1, files=len(kept_files(source, entry, plan.recipe)), bytes=made.bytes)
        except CacheCorrupt:
            if attempt:
                raise
    raise AssertionError


def kept_files(source: Storage, entry: PartEntry, new: Recipe) -> dict[str, int]:
    """The files of a part that a narrower recipe keeps, with their sizes."""
    (seal,) = read_seals(source, [entry])
    return files_of(seal, new)


def files_of(seal: Seal, recipe: Recipe) -> dict[str, int]:
    """The files of a part that a recipe, its own or a narrower one, has; with their sizes."""
    arrays = arrays_of(seal, recipe)
    wanted = {*metadata_files(arrays, recipe), *(spec.shard_path for spec in arrays.values())}
    return {path: file.size for path, file in seal.files.items() if path in wanted}


def _fetch_part(source: Storage, entry: PartEntry, store: Path, recipe: Recipe) -> Moved:
    """Copy a part as it is; all files hashed as they lie here before it gets its name."""
    (seal,) = read_seals(source, [entry])
    where = f"{source.name}/parts/{entry.part}/{SEAL}"
    # The names in a seal become paths only after this: they must be exactly those of the recipe.
    check_seal(seal, arrays_of(seal, recipe), recipe, where)
    temporary = store / "parts" / f"{TEMPORARY}pull-{entry.part}"
    with writing(temporary):
        _remove_strangers(temporary, seal)
        for path in seal.files:
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
        moved = Moved(parts=1)
        _fetch_small(source, entry.part, temporary, seal, moved)
        for path, file in seal.files.items():
            if copied := fetch_file(source, f"parts/{entry.part}/{path}", temporary, path, file):
                moved.files, moved.bytes = moved.files + 1, moved.bytes + copied
        sync_tree(temporary)
        data = seal.to_bytes()
        (temporary / SEAL).unlink(missing_ok=True)
        write_synced(temporary / SEAL, data)
        sync(temporary)
        moved.files, moved.bytes = moved.files + 1, moved.bytes + len(data)
        if os.path.lexists(final := store / "parts" / entry.part):
            remove_tree(store, final)  # damaged: a sound one would have been kept
        temporary.rename(final)
        sync(final.parent)
    return moved


def _fetch_small(source: Storage, part: str, folder: Path, seal: Seal, moved: Moved) -> None:
    """Copy a part's small files, many with one request; what is not sound is left for `fetch_file` to get again."""
    small = {path: file.size for path, file in seal.files.items() if file.size <= SMALL_BYTES}
    missing = {path: size for path, size in small.items() if not (folder / path).exists()}
    for group in batches(missing):
        try:
            contents = source.read_many([f"parts/{part}/{path}" for path in group], SMALL_BYTES)
        except (FileNotFoundError, CacheCorrupt):
            continue
        for path, data in zip(group, contents, strict=True):
            if sha256_hex(data) == seal.files[path].sha256:
                (folder / path).write_bytes(data)
                moved.files, moved.bytes = moved.files + 1, moved.bytes + len(data)


def _remove_strangers(folder: Path, seal: Seal) -> None:
    """Remove from an unfinished part whatever is no file of it."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        folder.unlink()
    for path, folders, names in os.walk(folder):
        for name in (*folders, *names):
            here = Path(path, name)
            if here.is_symlink() or (name in names and here.relative_to(folder).as_posix() not in seal.files):
                here.unlink()


def _fetch_signature(source: Storage, store: Path) -> None:
    """Take over the signature of the content, where there is one; what it is worth, `hilda-cache verify` says."""
    with suppress(FileNotFoundError):
        replace_file(store, SIGNATURE, source.read(SIGNATURE, SIGNATURE_LIMIT))


def _finish(plan: PullPlan, store: Path) -> None:
    """Write the root: of a whole store the very bytes that are at the source, else what follows from the seals."""
    manifest, storage = plan.source.manifest, plan.source.storage
    if plan.history is None:
        frames = storage.read(FRAMES, FRAMES_LIMIT)
        if sha256_hex(frames) == manifest.frames_sha256:  # else a push is at work there
            replace_file(store, FRAMES, frames)
            replace_file(store, PARTS_GROUP, group_metadata())
            replace_file(store, GROUP, root_metadata(plan.recipe))
            write_manifest(store, manifest)
            _fetch_signature(storage, store)
            return
    digest = plan.recipe.digest()
    entries = [existing_part(store, each.part, digest, plan.recipe) for each in plan.parts]
    finish_store(store, plan.recipe, [entry for entry in entries if entry is not None])
