"""The same frames in another encoding, from what a reader gets of the old one; what that loses is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hilda_cache.reshape.derive import check_derivable, derive_part
from hilda_cache.reshape.target import history_of, make_store, open_source
from hilda_cache.reshape.words import option_words
from hilda_schema.manifest import EncodingInfo, Manifest, PartEntry


def reencode(
    url: str,
    out: Path,
    encoding: EncodingInfo,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Store the features of a store in another encoding.

    Args:
        url: folder or URL of the store.
        out: folder of the new one.
        encoding: what lies on disk there; features at the pairs are the samples that a reader of the grids gives.
        on_part: called with parts done and parts planned.

    Raises:
        UsageError: grids are asked of a store of point features.
        CacheError: the store is damaged or not complete, the new one cannot be written, or a feature is beyond what
            the encoding can hold.
    """
    source = open_source(url)
    old = source.manifest.recipe
    recipe = old.model_copy(update={"encoding": encoding})
    check_derivable(old, recipe)
    error = source.manifest.encoding_error if encoding != old.encoding else {}
    words = encoding.kind + ("-int8" if encoding.dtype == "int8" else "")
    history = history_of(source.manifest, "reencode", option_words(to=words), error)

    def make(entry: PartEntry) -> PartEntry:
        return derive_part(source.storage, entry.part, old, out, recipe, seal_sha256=entry.seal_sha256)

    return make_store(out, [source], recipe, history, source.manifest.parts, make, on_part)
