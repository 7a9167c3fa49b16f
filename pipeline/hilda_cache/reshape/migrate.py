"""From a store of an earlier schema to one of today's.

A store has the lowest schema that can say what is in it (`Recipe.schema_version`), so that all schemas so far are
today's and there is no step. A schema that is no longer written brings one: an entry in `STEPS`, and a store of it
that stays in the tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hilda_schema.errors import CacheCorrupt, CacheNotFound
from hilda_schema.manifest import require_known_schema
from hilda_schema.root import MANIFEST, MANIFEST_LIMIT, rebuild_command
from hilda_schema.storage import LocalStorage

STEPS: dict[str, tuple[str, Callable[[Path], None]]] = {}
"""Schema -> the next one, and what takes a store there, in place; killed at any point, it can be run again."""


def steps_of(store: Path) -> list[str]:
    """The schemas that a store has to leave behind, in order; none where it has today's.

    Raises:
        CacheNotFound: there is no store.
        CacheVersion: a later program wrote it.
        CacheCorrupt: its manifest does not say which schema it has.
    """
    version = _version_of(store)
    found = []
    while version in STEPS:
        found.append(version)
        version = STEPS[version][0]
    require_known_schema(version, f"{store}/{MANIFEST}")
    return found


def _version_of(store: Path) -> str:
    storage = LocalStorage(store)
    try:
        return str(json.loads(storage.read(MANIFEST, MANIFEST_LIMIT))["schema_version"])
    except FileNotFoundError:
        raise CacheNotFound(f"no cache at {store}", "give the folder of a cache") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CacheCorrupt(f"{store}/{MANIFEST} does not say which schema it has", rebuild_command(storage)) from None


def migrate(store: Path) -> list[str]:
    """Take a store to today's schema; the schemas that it left behind. Errors as in `steps_of`."""
    steps = steps_of(store)
    for version in steps:
        STEPS[version][1](store)
    return steps
