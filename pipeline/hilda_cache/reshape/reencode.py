"""The same frames in another encoding, from what a reader gets of the old one; what that loses is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hilda_cache.reshape.derive import check_derivable, derive_part
from hilda_cache.reshape.reduce import Bases, fitted, taken_from
from hilda_cache.reshape.target import history_of, make_store, open_source
from hilda_cache.reshape.words import option_words
from hilda_schema.manifest import EncodingInfo, Manifest, PartEntry
from hilda_schema.reader import open_cache


def reencode(
    url: str,
    out: Path,
    encoding: EncodingInfo | None = None,
    dims: Mapping[str, int] | None = None,
    like: str | None = None,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Store the features of a store in another encoding.

    Args:
        url: folder or URL of the store.
        out: folder of the new one.
        encoding: what lies on disk there; features at the pairs are the samples that a reader of the grids gives.
            None: as it is.
        dims: teacher -> channels to keep of its layers, fitted to this store.
        like: a store whose encoding and channels to take instead of both.
        on_part: called with parts done and parts planned.

    Raises:
        UsageError: grids are asked of a store of point features, channels of one that has lost some, or the store to
            be like has other teachers.
        CacheError: the store is damaged or not complete, the new one cannot be written, or a feature is beyond what
            the encoding can hold.
    """
    source = open_source(url)
    old = source.manifest.recipe
    bases: Bases = {}
    if like is not None:
        recipe, bases = taken_from(open_cache(url), open_cache(like))
    elif dims:
        recipe, bases = fitted(open_cache(url), dims)
    else:
        recipe = old
    if encoding is not None:
        recipe = recipe.model_copy(update={"encoding": encoding})
    check_derivable(old, recipe)
    error = source.manifest.encoding_error if recipe.digest() != old.digest() else {}
    words = recipe.encoding.kind + ("-int8" if recipe.encoding.dtype == "int8" else "")
    kept = ",".join(f"{name}={count}" for name, count in (dims or {}).items())
    history = history_of(source.manifest, "reencode", option_words(to=words, dims=kept), error)

    def make(entry: PartEntry) -> PartEntry:
        return derive_part(
            source.storage, entry.part, old, out, recipe, seal_sha256=entry.seal_sha256, bases=bases
        )  # fmt: skip

    return make_store(out, [source], recipe, history, source.manifest.parts, make, on_part)
