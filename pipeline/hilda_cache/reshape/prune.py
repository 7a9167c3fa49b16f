"""What lies in a store's folder without belonging to it: leftovers of dead writers, unlisted parts, strangers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hilda_cache.lock import locked
from hilda_schema.durable import TEMPORARY, sweep_temporary
from hilda_schema.errors import CacheCorrupt, UsageError
from hilda_schema.manifest import Manifest
from hilda_schema.part import read_seal
from hilda_schema.root import GROUP, OWN_FILES
from hilda_schema.storage import LocalStorage
from hilda_schema.verify import LOCK
from hilda_schema.writer import read_manifest, remove_part

OWN = {*OWN_FILES, LOCK, "parts"}


@dataclass(slots=True)
class Survey:
    """What does not belong to a store; names below it, sorted."""

    temporary: list[str] = field(default_factory=list)  # below `parts`, of writers that died
    unlisted: list[str] = field(default_factory=list)  # ids of sealed parts that the manifest does not list
    unknown: list[str] = field(default_factory=list)  # anything else: nobody's to remove but the user's


def own_folder(store: str) -> Path:
    """A store's folder on this machine.

    Raises:
        UsageError: there is none.
    """
    folder = Path(store)
    if not (folder / "parts").is_dir():
        raise UsageError(f"{store} has no folder of parts here", "give the folder of a cache; copy a remote one first")
    return folder


def survey(store: Path, manifest: Manifest) -> Survey:
    """Look at a store's folder, at nothing inside its listed parts.

    A store that is not complete lists no parts yet: its sealed ones, of its recipe, belong to it.
    """
    found, storage = Survey(), LocalStorage(store)
    found.unknown = sorted(path.name for path in store.iterdir() if path.name not in OWN)
    listed = {entry.part for entry in manifest.parts}
    for path in sorted((store / "parts").iterdir()):
        if path.name.startswith(TEMPORARY):
            found.temporary.append(path.name)
        elif path.name in listed or path.name == GROUP:
            continue
        elif (digest := _sealed_recipe(storage, path.name)) is None:
            found.unknown.append(f"parts/{path.name}")
        elif manifest.state == "complete":
            found.unlisted.append(path.name)
        elif digest != manifest.recipe.digest():
            found.unknown.append(f"parts/{path.name}")
    return found


def _sealed_recipe(storage: LocalStorage, part: str) -> str | None:
    """The recipe of a sealed part; None for what is none."""
    try:
        return read_seal(storage, part)[0].recipe_digest
    except (CacheCorrupt, OSError):
        return None


def prune(store: Path, *, dry_run: bool) -> Survey:
    """Remove what dead writers left and the parts that the manifest does not list; never a file of somebody else.

    Args:
        store: the store's folder.
        dry_run: only look.

    Returns:
        What was (or would be) removed, and what is unknown and stays.

    Raises:
        CacheConflict: somebody writes to the store.
        CacheError: its manifest cannot be read, or something cannot be removed.
    """
    if dry_run:
        return survey(store, read_manifest(store))
    with locked(store):
        found = survey(store, read_manifest(store))
        for part in found.unlisted:
            remove_part(store, part)
        sweep_temporary(store)
    return found
