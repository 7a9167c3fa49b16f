"""Restoring a store: its root from its parts, without those that are damaged where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hilda_cache.lock import locked
from hilda_cache.reshape.forget import finish_forgetting
from hilda_schema.durable import sweep_temporary
from hilda_schema.errors import CacheCorrupt, CacheNotFound
from hilda_schema.manifest import Manifest
from hilda_schema.part import read_seal
from hilda_schema.reader import open_cache
from hilda_schema.storage import LocalStorage
from hilda_schema.verify import verify
from hilda_schema.writer import read_manifest, rebuild, remove_part


@dataclass(slots=True)
class RepairReport:
    """What came of a repair."""

    manifest: Manifest
    lost: dict[str, list[str]] = field(default_factory=dict)  # part removed -> keys of its frames, as far as known
    manifest_was_lost: bool = False
    history_was_lost: bool = False  # and what only the manifest knew with it
    forgot: bool = False  # a removal of frames that had been interrupted is done


def repair(
    store: Path, *, drop_damaged: bool, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> RepairReport:
    """Restore a store.

    Args:
        store: its folder.
        drop_damaged: check every byte first, and remove the parts that are damaged.
        on_progress: called with files checked and files there are.

    Raises:
        CacheConflict: somebody writes to it.
        CacheCorrupt: a part is damaged (without `drop_damaged`), or there is none to restore from.
        CacheError: the store cannot be written.
    """
    with locked(store):
        sweep_temporary(store)
        settled = _settled(store)
        if settled is not None and finish_forgetting(store):
            return RepairReport(read_manifest(store), forgot=True)
        lost = {}
        if drop_damaged:
            keys = _keys(store, settled)
            for part in verify(store, on_progress).damaged_parts:
                lost[part] = keys.get(part) or _sealed_keys(store, part)
                if (store / "parts" / part).exists():
                    remove_part(store, part)
        manifest = rebuild(store)
        return RepairReport(manifest, lost, settled is None, settled is None and not manifest.software)


def _settled(store: Path) -> Manifest | None:
    try:
        return read_manifest(store)
    except (CacheNotFound, CacheCorrupt):
        return None


def _keys(store: Path, settled: Manifest | None) -> dict[str, list[str]]:
    """Part -> keys of its frames, from the table, which a damaged part does not touch."""
    if settled is None:
        return {}
    try:
        cache = open_cache(store, allow_partial=True)
    except CacheCorrupt:
        return {}
    found: dict[str, list[str]] = {}
    for part, key in zip(cache.frames["part"].to_pylist(), cache.frames["key"].to_pylist(), strict=True):
        found.setdefault(part, []).append(key)
    return found


def _sealed_keys(store: Path, part: str) -> list[str]:
    try:
        return [frame.key for frame in read_seal(LocalStorage(store), part)[0].frames]
    except (CacheCorrupt, OSError):
        return []
