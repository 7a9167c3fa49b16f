"""What lies at a store's root: the manifest, the table of frames and the groups, each checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

import pyarrow as pa

from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheError, CacheNotFound, UsageError
from hilda_schema.layout import check_names, group_metadata, root_metadata
from hilda_schema.manifest import History, Manifest, PartEntry, Recipe, Seal, canonical_json, sha256_hex
from hilda_schema.part import METADATA_LIMIT, SEAL, SEAL_LIMIT, verify_command
from hilda_schema.storage import Storage
from hilda_schema.table import frames_table, parse_table

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 2**28  # 256 MiB: about a million parts
FRAMES = "frames.parquet"
FRAMES_LIMIT = 2**32  # 4 GiB: about ten million frames
GROUP = "zarr.json"
PARTS_GROUP = "parts/zarr.json"
ROOT_TRIES = 5  # pushes that may finish while a root is read
SEALS_AT_ONCE = 64
CARD = "README.md"
"""For people; no program reads it, so nothing vouches for it."""
HISTORY = "history.json"
SIGNATURE = "root.sig"
"""Somebody's signature of the root hash; see `hilda_cache.share.signature`."""
SIGNATURE_LIMIT = 2**16
OWN_FILES = frozenset({MANIFEST, FRAMES, GROUP, CARD, HISTORY, SIGNATURE})
"""Files that a store has at its root; all but the first three may be missing."""


def load_manifest(storage: Storage) -> Manifest:
    """Read and check the manifest.

    Raises:
        CacheNotFound: there is no store.
        CacheVersion: a newer program wrote it.
        CacheCorrupt: it is damaged.
        CacheConflict: it is not the store that the URL pins.
    """
    for _ in range(storage.tries - 1):
        with suppress(CacheCorrupt):
            return _load_manifest(storage)
    return _load_manifest(storage)


def _load_manifest(storage: Storage) -> Manifest:
    where = f"{storage.name}/{MANIFEST}"
    try:
        manifest = Manifest.from_bytes(storage.read(MANIFEST, MANIFEST_LIMIT), where)
        _check_manifest(manifest, where)
        _check_pin(manifest, storage)
        return manifest
    except FileNotFoundError:
        if storage.listed and storage.folders("parts"):
            raise CacheCorrupt(f"{where} is missing, but there are parts", rebuild_command(storage)) from None
        raise CacheNotFound(f"no cache at {storage.name}", _instead(storage)) from None
    except CacheCorrupt as error:
        raise CacheCorrupt(error.message, rebuild_command(storage)) from None


def _instead(storage: Storage) -> str:
    """What to do where no store is: name the folder meant, if one directly below looks like a store."""
    if not storage.listed:
        return "check the URL; after a push that was stopped, push again: the manifest comes last"
    below = [name for name in storage.folders("") if "parts" in storage.folders(name)]
    return f"did you mean {storage.name}/{below[0]}?" if below else "make one with: hilda-cache extract"


def _check_manifest(manifest: Manifest, where: str) -> None:
    """Refuse a manifest that contradicts itself."""
    try:
        check_names(manifest.recipe)
    except UsageError as error:
        raise CacheCorrupt(f"{where}: {error.message}") from None
    if manifest.schema_version != manifest.recipe.schema_version:
        raise CacheCorrupt(f"{where} has schema {manifest.schema_version}, its recipe {manifest.recipe.schema_version}")
    if len({entry.part for entry in manifest.parts}) != len(manifest.parts):
        raise CacheCorrupt(f"{where} lists a part twice")
    if manifest.state == "complete":
        _check_complete(manifest, where)


def _check_complete(manifest: Manifest, where: str) -> None:
    if manifest.root_sha256 != root_sha256(manifest.parts):
        raise CacheCorrupt(f"{where}: its root hash is not that of its parts")
    if manifest.planned_parts != len(manifest.parts):
        raise CacheCorrupt(f"{where} lists {len(manifest.parts)} of {manifest.planned_parts} parts as complete")
    if manifest.frames != sum(entry.frames for entry in manifest.parts):
        raise CacheCorrupt(f"{where}: its parts do not have {manifest.frames} frames")
    if manifest.group_sha256 != sha256_hex(root_metadata(manifest.recipe)):
        raise CacheCorrupt(f"{where}: the {GROUP} that it names is not what the recipe makes it")


def _check_pin(manifest: Manifest, storage: Storage) -> None:
    """Refuse a store that is not the one asked for by its root hash.

    Raises:
        CacheConflict: naming both hashes.
    """
    if manifest.root_sha256.startswith(storage.pin):
        return
    found = f"sha256:{manifest.root_sha256}" if manifest.root_sha256 else "not complete"
    raise CacheConflict(
        f"{storage.name} is {found}, and sha256:{storage.pin} was asked for",
        "find the store that has it, or leave @sha256:... out to take this one",
    )


def load_root(storage: Storage) -> tuple[Manifest, pa.Table | None]:
    """Read and check a store's root.

    A push to an object store replaces frames.parquet first and the manifest, which names it, after: a table that is not
    the manifest's is then nothing wrong. The manifest is read again; where it has changed it is taken, where it has not
    the table is derived from the seals, which the manifest names and a push never changes.

    Returns:
        The manifest, and the table of frames; None while the store is partial.

    Raises:
        CacheNotFound: there is no store.
        CacheVersion: a newer program wrote it.
        CacheCorrupt: it is damaged.
        CacheConflict: it is not the store that the URL pins, or it changes all the time.
    """
    manifest = load_manifest(storage)
    for _ in range(ROOT_TRIES):
        if manifest.state != "complete":
            return manifest, None
        _read_hashed(storage, GROUP, METADATA_LIMIT, manifest.group_sha256)
        _read_hashed(storage, PARTS_GROUP, METADATA_LIMIT, sha256_hex(group_metadata()))
        data = _read_matching(storage, FRAMES, FRAMES_LIMIT, manifest.frames_sha256)
        if data is not None:
            return manifest, parse_table(data, manifest.frames, f"{storage.name}/{FRAMES}")
        if storage.listed:
            raise _another(storage, FRAMES)
        before, manifest = manifest, load_manifest(storage)
        if manifest == before:
            return manifest, table_of_seals(storage, manifest)
    raise CacheConflict(f"{storage.name} changes faster than it can be read", "try again when nobody pushes to it")


def table_of_seals(storage: Storage, manifest: Manifest) -> pa.Table:
    """The table of frames of a complete store, from the seals that its manifest names.

    Raises:
        CacheCorrupt: a seal is missing or is not the one that the manifest lists.
    """
    found = []
    for start in range(0, len(manifest.parts), SEALS_AT_ONCE):
        entries = manifest.parts[start : start + SEALS_AT_ONCE]
        found += list(zip(read_seals(storage, entries), entries, strict=True))
    table = frames_table(found)
    if table.num_rows != manifest.frames:
        raise CacheCorrupt(f"{storage.name}: the seals do not have the {manifest.frames} frames of {MANIFEST}")
    return table


def read_seals(storage: Storage, entries: Sequence[PartEntry]) -> list[Seal]:
    """The seals that a manifest lists.

    Raises:
        CacheCorrupt: one is missing or is not the one that the manifest lists.
    """
    for _ in range(storage.tries - 1):
        with suppress(CacheCorrupt):
            return _read_seals(storage, entries)
    return _read_seals(storage, entries)


def _read_seals(storage: Storage, entries: Sequence[PartEntry]) -> list[Seal]:
    paths = [f"parts/{entry.part}/{SEAL}" for entry in entries]
    try:
        contents = storage.read_many(paths, SEAL_LIMIT)
    except FileNotFoundError as error:
        raise CacheCorrupt(f"{error.filename} is missing", verify_command(storage)) from None
    for path, data, entry in zip(paths, contents, entries, strict=True):
        if sha256_hex(data) != entry.seal_sha256:
            raise CacheCorrupt(f"{storage.name}/{path} is not the one that the manifest lists", verify_command(storage))
    return [Seal.from_bytes(data, f"{storage.name}/{path}") for path, data in zip(paths, contents, strict=True)]


def _read_hashed(storage: Storage, path: str, limit: int, sha256: str) -> bytes:
    """A file of the root that the manifest names."""
    data = _read_matching(storage, path, limit, sha256)
    if data is None:
        raise _another(storage, path)
    return data


def _read_matching(storage: Storage, path: str, limit: int, sha256: str) -> bytes | None:
    """A file of the root; None where it has another hash."""
    for attempt in range(storage.tries):
        try:
            data = storage.read(path, limit)
        except FileNotFoundError:
            raise CacheCorrupt(f"{storage.name}/{path} is missing", rebuild_command(storage)) from None
        except CacheCorrupt as error:
            if attempt + 1 < storage.tries:
                continue
            raise CacheCorrupt(error.message, rebuild_command(storage)) from None
        if sha256_hex(data) == sha256:
            return data
    return None


def _another(storage: Storage, path: str) -> CacheCorrupt:
    return CacheCorrupt(f"{storage.name}/{path} is not the one that the manifest names", rebuild_command(storage))


def root_sha256(parts: tuple[PartEntry, ...]) -> str:
    """Names a store's exact content: over the ids and seals of its parts, in reading order."""
    return sha256_hex(canonical_json([[entry.part, entry.seal_sha256] for entry in parts]))


def load_history(storage: Storage, recipe: Recipe) -> History | None:
    """The history that lies beside a lost manifest; None where there is none that can be trusted.

    Args:
        storage: the store.
        recipe: that its parts carry.
    """
    try:
        found = History.from_bytes(storage.read(HISTORY, MANIFEST_LIMIT), HISTORY)
    except (FileNotFoundError, CacheError):
        return None
    return found if found.recipe_digest == recipe.digest() else None


def recipe_of_part(metadata: bytes) -> Recipe | None:
    """The recipe (without selection) that a part's own `zarr.json` carries; None where it carries none."""
    try:
        return Recipe.model_validate({**json.loads(metadata)["attributes"]["hilda"]["recipe"], "selection": {}})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def rebuild_command(storage: Storage) -> str:
    """The next thing to do about a damaged root: everything in it follows from the parts."""
    if not storage.listed:
        return f"push a sound copy again: hilda-cache push STORE {storage.name} --replace"
    return f"restore it from the parts with: hilda-cache repair {storage.name}"


def unfinished_remedy(storage: Storage, manifest: Manifest) -> str:
    """The next thing to do about a store that is not complete."""
    operation = manifest.parents[0].operation if manifest.parents else ""
    if operation == "forget":
        return f"frames are being removed from it; finish that with: hilda-cache repair {storage.name}"
    again = f"run the {operation} again" if operation else "run the extraction again"
    return f"{again} to finish it, or open it as it is with allow_partial=True"
