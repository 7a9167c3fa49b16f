"""What lies at a store's root: the manifest, the table of frames and the groups, each checked before it is used."""

from __future__ import annotations

import json

import pyarrow as pa

from hilda_schema.errors import CacheCorrupt, CacheNotFound, UsageError
from hilda_schema.layout import check_names, group_metadata, root_metadata
from hilda_schema.manifest import Manifest, PartEntry, Recipe, canonical_json, sha256_hex
from hilda_schema.part import METADATA_LIMIT
from hilda_schema.storage import Storage
from hilda_schema.table import parse_table

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 2**28  # 256 MiB: about a million parts
FRAMES = "frames.parquet"
FRAMES_LIMIT = 2**32  # 4 GiB: about ten million frames
GROUP = "zarr.json"
PARTS_GROUP = "parts/zarr.json"
CARD = "README.md"
"""For people; no program reads it, so nothing vouches for it."""


def load_manifest(storage: Storage) -> Manifest:
    """Read and check the manifest.

    Raises:
        CacheNotFound: there is no store.
        CacheVersion: a newer program wrote it.
        CacheCorrupt: it is damaged.
    """
    where = f"{storage.name}/{MANIFEST}"
    try:
        manifest = Manifest.from_bytes(storage.read(MANIFEST, MANIFEST_LIMIT), where)
        _check_manifest(manifest, where)
        return manifest
    except FileNotFoundError:
        if storage.folders("parts"):
            raise CacheCorrupt(f"{where} is missing, but there are parts", rebuild_command(storage)) from None
        raise CacheNotFound(f"no cache at {storage.name}", "make one with: hilda-cache extract") from None
    except CacheCorrupt as error:
        raise CacheCorrupt(error.message, rebuild_command(storage)) from None


def _check_manifest(manifest: Manifest, where: str) -> None:
    """Refuse a manifest that contradicts itself."""
    try:
        check_names(manifest.recipe)
    except UsageError as error:
        raise CacheCorrupt(f"{where}: {error.message}") from None
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


def load_table(storage: Storage, manifest: Manifest) -> pa.Table:
    """Read and check the rest of a complete store's root.

    Returns:
        frames.parquet.

    Raises:
        CacheCorrupt: a file is missing or is not the one that the manifest names.
    """
    data = _read_hashed(storage, FRAMES, FRAMES_LIMIT, manifest.frames_sha256)
    _read_hashed(storage, GROUP, METADATA_LIMIT, manifest.group_sha256)
    _read_hashed(storage, PARTS_GROUP, METADATA_LIMIT, sha256_hex(group_metadata()))
    return parse_table(data, manifest.frames, f"{storage.name}/{FRAMES}")


def _read_hashed(storage: Storage, path: str, limit: int, sha256: str) -> bytes:
    where = f"{storage.name}/{path}"
    try:
        data = storage.read(path, limit)
    except FileNotFoundError:
        raise CacheCorrupt(f"{where} is missing", rebuild_command(storage)) from None
    except CacheCorrupt as error:
        raise CacheCorrupt(error.message, rebuild_command(storage)) from None
    if sha256_hex(data) != sha256:
        raise CacheCorrupt(f"{where} is not the one that the manifest names", rebuild_command(storage))
    return data


def root_sha256(parts: tuple[PartEntry, ...]) -> str:
    """Names a store's exact content: over the ids and seals of its parts, in reading order."""
    return sha256_hex(canonical_json([[entry.part, entry.seal_sha256] for entry in parts]))


def recipe_of_part(metadata: bytes) -> Recipe | None:
    """The recipe (without selection) that a part's own `zarr.json` carries; None where it carries none."""
    try:
        return Recipe.model_validate({**json.loads(metadata)["attributes"]["hilda"]["recipe"], "selection": {}})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def rebuild_command(storage: Storage) -> str:
    """The next thing to do about a damaged root: everything in it follows from the parts."""
    return f"restore it from the parts with: hilda-cache repair {storage.name}"
