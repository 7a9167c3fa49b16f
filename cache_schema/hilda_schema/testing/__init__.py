"""The conformance kit: for those who write caches, who read them, or who need a small one to test with.

    from hilda_schema.testing import check_store, damaged_cases, reader_cases, tiny_cache

    store = tiny_cache(tmp_path / "cache")      # a small valid cache, a toy drive rather than noise
    check_store(store)                          # a writer's check: every rule of the specification that it breaks
    for case in reader_cases(tmp_path):         # a reader's check: stores, and what must be read from them
        case.store, case.frames
    for case in damaged_cases(tmp_path):        # stores that a reader must refuse
        case.store, case.frame, case.rule

`recipes` and `part_contents` are Hypothesis strategies. docs/conformance.md shows how to use all of it.
"""

from hilda_schema.testing import rules
from hilda_schema.testing.damage import DamagedCase, damaged_cases, reseal, reseal_files, set_values, sign
from hilda_schema.testing.readers import ExpectedFrame, ReaderCase, reader_cases
from hilda_schema.testing.rules import Rule, Violation
from hilda_schema.testing.stores import check_same_ids, check_store, validate
from hilda_schema.testing.strategies import part_contents, recipes
from hilda_schema.testing.tiny import CAMERAS, IMAGE_SIZES_PX, tiny_cache, tiny_parts, tiny_recipe, write_store

__all__ = [
    "CAMERAS",
    "IMAGE_SIZES_PX",
    "DamagedCase",
    "ExpectedFrame",
    "ReaderCase",
    "Rule",
    "Violation",
    "check_same_ids",
    "check_store",
    "damaged_cases",
    "part_contents",
    "reader_cases",
    "recipes",
    "reseal",
    "reseal_files",
    "rules",
    "set_values",
    "sign",
    "tiny_cache",
    "tiny_parts",
    "tiny_recipe",
    "validate",
    "write_store",
]
