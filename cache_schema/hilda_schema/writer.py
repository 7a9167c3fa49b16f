"""Writing a store: parts that are written once, sealed and never changed, and a manifest derived from their seals.

    start_store    a partial manifest: whose store this is
    write_part     one part, complete under its final name or not there at all; any number of writers at a time
    finish_store   frames.parquet, the root group and the complete manifest, from the seals alone

Same inputs, same bytes: an interrupted and repeated extraction ends in the tree of an undisturbed one.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow

from hilda_schema import __version__
from hilda_schema.checks import check_content
from hilda_schema.content import FrameContent, PartContent
from hilda_schema.durable import (
    remove_tree,
    replace_file,
    sweep_temporary,
    sync,
    sync_tree,
    temporary_path,
    write_synced,
    writing,
)
from hilda_schema.encoding import errors_of_store
from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheIncomplete, CacheNotFound
from hilda_schema.features import EncodedArrays, encode_part
from hilda_schema.layout import POINT_COLUMNS, PartSizes, check_names, group_metadata, part_arrays, root_metadata
from hilda_schema.manifest import (
    CameraSize,
    EncodingError,
    Forgotten,
    FrameRow,
    Manifest,
    Parent,
    PartEntry,
    Recipe,
    Seal,
    key_digests,
    sha256_hex,
)
from hilda_schema.part import METADATA_LIMIT, SEAL, entry_of, open_part, read_seal, write_metadata
from hilda_schema.root import (
    FRAMES,
    GROUP,
    HISTORY,
    MANIFEST,
    PARTS_GROUP,
    load_history,
    load_manifest,
    recipe_of_part,
    root_sha256,
)
from hilda_schema.shard import write_array
from hilda_schema.storage import LocalStorage
from hilda_schema.table import frames_table, reading_order, table_bytes

__all__ = [
    "existing_part",
    "finish_store",
    "make_part",
    "read_manifest",
    "rebuild",
    "remove_part",
    "sealed_parts",
    "start_store",
    "sweep_temporary",
    "write_manifest",
    "write_part",
]


def write_part(
    store: Path,
    recipe: Recipe,
    content: PartContent,
    encoding: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> PartEntry:
    """Write, seal and publish one part.

    Args:
        store: the store's folder, started.
        recipe: the store's recipe.
        content: what to write.
        encoding: what it makes is entered while features are encoded, for whoever measures that beside the writing.

    Returns:
        The part as the manifest lists it. Where a sealed part of that id is already there, it is kept as it is and its
        entry is returned: the id is a hash of what determines the content.

    Raises:
        CacheError: the content is not finite or not what the recipe says (naming frame, camera and layer), the disk is
            full, the folder not writable. Nothing is then left under the part's name.
        CacheConflict: a part of that id is there but was made with another recipe.
    """
    check_content(recipe, content)
    return make_part(store, recipe, content.part, lambda folder: _write_files(folder, recipe, content, encoding))


def make_part(store: Path, recipe: Recipe, part: str, write_files: Callable[[Path], Seal]) -> PartEntry:
    """Seal and publish one part, wherever its files come from.

    Args:
        store: the store's folder, started.
        recipe: the store's recipe.
        part: the part's id.
        write_files: fills a new folder with every file but the seal, and returns the seal.

    Returns:
        The part as the manifest lists it; one that is already there is kept, as in `write_part`.

    Raises:
        CacheError: the folder cannot be written, or what `write_files` raises. Nothing is then left under the part's
            name.
        CacheConflict: a part of that id is there but was made with another recipe.
    """
    if entry := existing_part(store, part, recipe.digest(), recipe):
        return entry
    temporary = temporary_path(store, part)
    with writing(temporary):
        try:
            temporary.mkdir()
            seal = write_files(temporary)
            sync_tree(temporary)
            write_synced(temporary / SEAL, seal.to_bytes())
            sync(temporary)
            return _publish(store, recipe, temporary, part)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _write_files(
    folder: Path, recipe: Recipe, content: PartContent, encoding: Callable[[], AbstractContextManager[object]]
) -> Seal:
    """Write a part's arrays and their metadata, and say what was written."""
    frames = content.frames
    columns = [column.name for column in POINT_COLUMNS if column.optional]
    sizes = PartSizes(
        frames=len(frames),
        points=sum(len(frame.xyz_m) for frame in frames),
        pairs=sum(len(frame.pairs) for frame in frames),
        point_columns=frozenset(
            name for name in columns if any(getattr(frame, name) is not None and len(frame.xyz_m) for frame in frames)
        ),
    )
    arrays = part_arrays(recipe, sizes)
    files = write_metadata(folder, arrays, recipe)
    errors: dict[str, EncodingError] = {}
    for encoded in _measured(encode_part(recipe, content), encoding):
        for path, rows in encoded.rows.items():
            if path in arrays and (spec := arrays[path]).chunks:
                files[spec.shard_path] = write_array(folder, spec, rows)
        if encoded.error is not None:
            errors[encoded.layer] = encoded.error
    return Seal(
        schema_version=recipe.schema_version,
        part=content.part,
        recipe_digest=recipe.digest(),
        scene=content.scene,
        cameras=tuple(
            CameraSize(name=name, width_px=width, height_px=height)
            for name, (width, height) in content.camera_sizes_px.items()
        ),
        frames=tuple(_frame_row(frame) for frame in frames),
        sources=dict(sorted(content.sources.items())),
        calibration_sha256=content.calibration_sha256,
        encoding_error=errors,
        files=dict(sorted(files.items())),
    )


def _measured(
    encoded: Iterator[EncodedArrays], encoding: Callable[[], AbstractContextManager[object]]
) -> Iterator[EncodedArrays]:
    while True:
        with encoding():
            each = next(encoded, None)
        if each is None:
            return
        yield each


def _frame_row(frame: FrameContent) -> FrameRow:
    return FrameRow(
        key=str(frame.key),
        position=frame.position,
        stamp_ns=int(frame.stamp_ns),
        world_SE3_lidar=tuple(np.asarray(frame.world_SE3_lidar, np.float64).ravel().tolist()),
        world_SE3_ego=tuple(np.asarray(frame.world_SE3_ego, np.float64).ravel().tolist()),
        points=len(frame.xyz_m),
        points_dropped=frame.points_dropped,
        pairs=len(frame.pairs),
        points_seen=len(np.unique(frame.pairs.point)),
        absent=frame.absent,
    )


def _publish(store: Path, recipe: Recipe, temporary: Path, part: str) -> PartEntry:
    """Give a sealed part its final name."""
    final = store / "parts" / part
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
        # Another writer of the same part was faster, or a damaged part lies in the way.
        if entry := existing_part(store, part, recipe.digest(), recipe):
            shutil.rmtree(temporary)
            return entry
        remove_tree(store, final)
        temporary.rename(final)
    sync(final.parent)
    return entry_of(*read_seal(LocalStorage(store), part))


def sealed_parts(store: Path) -> list[str]:
    """Ids of all folders under `parts` that have a seal, sorted."""
    folders = LocalStorage(store).folders("parts")
    return [name for name in folders if not name.startswith(".") and (store / "parts" / name / SEAL).exists()]


def existing_part(store: Path, part: str, recipe_digest: str, recipe: Recipe | None = None) -> PartEntry | None:
    """A part that is already there, sealed, with all its files in the right sizes; None otherwise.

    Args:
        store: the store's folder.
        part: the part's id.
        recipe_digest: of the recipe that is being extracted.
        recipe: that recipe, where the caller has it; else the store's.

    Raises:
        CacheConflict: the part was made with another recipe.
    """
    storage = LocalStorage(store)
    try:
        seal, _, _ = read_seal(storage, part)
    except (CacheCorrupt, OSError):
        return None
    if seal.recipe_digest != recipe_digest:
        raise CacheConflict(f"{store}/parts/{part} was made with another recipe", "extract into another folder")
    try:
        return open_part(storage, part, recipe or read_manifest(store).recipe)[1]
    except (CacheCorrupt, OSError):
        return None


def remove_part(store: Path, part: str) -> None:
    """Remove a part, so that it can be made again."""
    remove_tree(store, store / "parts" / part)


def start_store(
    store: Path,
    recipe: Recipe,
    planned_parts: int,
    software: dict[str, str] | None = None,
    parents: tuple[Parent, ...] = (),
    forgotten: tuple[Forgotten, ...] = (),
) -> Manifest:
    """Begin or resume a store: write the partial manifest that says whose it is.

    Args:
        store: the store's folder; made where it is not there.
        recipe: of every part.
        planned_parts: how many there will be.
        software: name -> version of what else determines the features' last bits.
        parents: the stores that it is made from.
        forgotten: what was removed from them on request.

    Raises:
        CacheConflict: the store has another recipe.
        UsageError: the recipe has names that cannot be folders.
        CacheError: the folder cannot be written.
    """
    check_names(recipe)
    if (store / MANIFEST).exists() and read_manifest(store).recipe != recipe:
        raise CacheConflict(f"{store} was made with another recipe", "extract into another folder")
    manifest = Manifest(
        writer=f"hilda-lidar {__version__}",
        recipe=recipe,
        state="partial",
        planned_parts=planned_parts,
        software={"numpy": np.__version__, "pyarrow": pyarrow.__version__, **(software or {})},
        parents=parents,
        forgotten=forgotten,
    )
    with writing(store):
        (store / "parts").mkdir(parents=True, exist_ok=True)
    return write_manifest(store, manifest)


def finish_store(store: Path, recipe: Recipe, parts: Iterable[PartEntry]) -> Manifest:
    """Complete a store: derive everything at its root from the seals of its parts.

    Args:
        store: the store's folder, started.
        recipe: the store's recipe.
        parts: every part, in any order.

    Returns:
        The manifest written.

    Raises:
        CacheConflict: the store was started with another recipe, or a frame is in two parts.
        CacheIncomplete: there are fewer parts than were planned.
        CacheCorrupt: a part's seal is no longer the one that its entry names.
        CacheError: the store cannot be written.
    """
    started = read_manifest(store)
    if started.recipe != recipe:
        raise CacheConflict(f"{store} was started with another recipe", "extract into another folder")
    storage = LocalStorage(store)
    found = []
    for entry in parts:
        opened = _entry_on_disk(storage, entry.part, recipe)
        if opened[1] != entry:
            raise CacheCorrupt(f"{store}/parts/{entry.part} changed since it was written", "run the same command again")
        found.append(opened)
    if len(found) != started.planned_parts:
        raise CacheIncomplete(
            f"{store} has {len(found)} of {started.planned_parts} parts", "run the extraction again to make the others"
        )
    return _write_root(store, started, found)


def read_manifest(store: Path) -> Manifest:
    """Read and check a store's manifest.

    Raises:
        CacheNotFound: there is none.
        CacheVersion: a newer program wrote it.
        CacheCorrupt: it is damaged.
    """
    return load_manifest(LocalStorage(store))


def rebuild(store: Path) -> Manifest:
    """Derive a store's root anew from the seals of its parts that are there; for a lost or damaged root.

    A complete manifest still says which parts are the store's: one that it does not list stays out. Where the manifest
    is lost, `history.json` says what was removed on request: a part that still has it is removed.

    Raises:
        CacheCorrupt: a part is damaged, or there is none to take the recipe from.
        CacheError: the store cannot be written.
    """
    storage = LocalStorage(store)
    template = _template(store, storage)
    listed = {entry.part for entry in template.parts}
    parts = [part for part in sealed_parts(store) if template.state == "partial" or part in listed]
    found = [_entry_on_disk(storage, part, template.recipe) for part in parts]
    gone = {digest for each in template.forgotten for digest in each.frames}
    for seal, _ in [each for each in found if gone & key_digests(each[0])]:
        remove_part(store, seal.part)
    found = [each for each in found if not gone & key_digests(each[0])]
    return _write_root(store, template.model_copy(update={"planned_parts": len(found)}), found)


def _template(store: Path, storage: LocalStorage) -> Manifest:
    """The store's manifest where it can be read, else one with the recipe that the parts carry."""
    try:
        return read_manifest(store)
    except (CacheNotFound, CacheCorrupt):
        for part in sealed_parts(store):
            if recipe := recipe_of_part(storage.read(f"parts/{part}/{GROUP}", METADATA_LIMIT)):
                return _with_history(storage, recipe)
        raise CacheCorrupt(f"{store} has no readable manifest and no part to take the recipe from") from None


def _with_history(storage: LocalStorage, recipe: Recipe) -> Manifest:
    """A manifest to complete, of a recipe without selection."""
    plain = Manifest(writer=f"hilda-lidar {__version__}", recipe=recipe, state="partial", planned_parts=0)
    if (history := load_history(storage, recipe)) is None:
        return plain
    known = {name: getattr(history, name) for name in ("software", "parents", "forgotten")}
    return plain.model_copy(update={"recipe": recipe.model_copy(update={"selection": history.selection}), **known})


def _entry_on_disk(storage: LocalStorage, part: str, recipe: Recipe) -> tuple[Seal, PartEntry]:
    """A part's seal and entry, after the checks of first touch."""
    open_part(storage, part, recipe)
    seal, seal_sha256, seal_bytes = read_seal(storage, part)
    return seal, entry_of(seal, seal_sha256, seal_bytes)


def _write_root(store: Path, template: Manifest, parts: list[tuple[Seal, PartEntry]]) -> Manifest:
    """Write the table and the groups, then the manifest that names them."""
    ordered = reading_order(parts)
    table = frames_table(ordered)
    frames, group = table_bytes(table), root_metadata(template.recipe)
    entries = tuple(entry for _, entry in ordered)
    manifest = template.model_copy(
        update={
            "state": "complete",
            "parts": entries,
            "frames": table.num_rows,
            "frames_sha256": sha256_hex(frames),
            "group_sha256": sha256_hex(group),
            "encoding_error": errors_of_store([seal for seal, _ in ordered]),
            "root_sha256": root_sha256(entries),
        }
    )
    replace_file(store, FRAMES, frames)
    replace_file(store, PARTS_GROUP, group_metadata())
    replace_file(store, GROUP, group)
    return write_manifest(store, manifest)


def write_manifest(store: Path, manifest: Manifest) -> Manifest:
    """Replace a store's manifest; returns it with its checksum, as a reader gets it.

    What only it knows is written beside it first: a removal on request is not forgotten, whichever of the two is lost.
    """
    data = manifest.to_bytes()
    replace_file(store, HISTORY, manifest.history().to_bytes())
    replace_file(store, MANIFEST, data)
    return Manifest.from_bytes(data, MANIFEST)
