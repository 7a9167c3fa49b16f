"""What no copy may do: mix two recipes, or bring back what was removed on request."""

from __future__ import annotations

from collections.abc import Iterable

from hilda_cache.extract import differences
from hilda_schema.errors import CacheConflict
from hilda_schema.manifest import Manifest, Recipe, sha256_hex

MAX_LISTED = 6


def refuse_other_recipe(there: str, theirs: Recipe, here: str, ours: Recipe) -> None:
    """Let nobody mix two recipes in one store; which scenes were asked for is no difference.

    Raises:
        CacheConflict: naming the fields that differ.
    """
    if theirs.digest() == ours.digest():
        return
    old, new = (each.model_dump(mode="json", exclude={"selection"}) for each in (theirs, ours))
    lines = [f"{name}: {a} there, {b} here" for name, a, b in differences(old, new)]
    raise CacheConflict(
        f"{there} has another recipe than {here}; {'; '.join(lines[:MAX_LISTED])}{' ...' * (len(lines) > MAX_LISTED)}",
        "give another place",
    )


def refuse_forgotten(target: str, manifest: Manifest, keys: Iterable[str]) -> None:
    """Let no copy bring back a frame that was removed from its target.

    Raises:
        CacheConflict: saying how many there are.
    """
    gone = {digest for each in manifest.forgotten for digest in each.frames}
    count = sum(sha256_hex(key.encode()) in gone for key in keys) if gone else 0
    if count:
        raise CacheConflict(
            f"{count} of the frames were removed from {target} on request: copying would bring them back",
            "remove them from the store that is copied too (hilda-cache forget), or give another place",
        )
