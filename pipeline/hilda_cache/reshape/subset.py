"""Cutting a store: some scenes, frames, cameras, teachers or layers of it, as a store of its own."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hilda_cache.request import Selection
from hilda_cache.reshape.derive import derive_part, narrow_recipe
from hilda_cache.reshape.target import Source, history_of, make_store, open_source
from hilda_schema.errors import UsageError
from hilda_schema.manifest import Manifest, PartEntry, Recipe, SelectionInfo


@dataclass(frozen=True, slots=True)
class Cut:
    """What stays; None: all of it."""

    scenes: tuple[str, ...] | None = None
    frames: str = ":"  # A:B, positions among the frames that the store has of each scene, as a Python slice
    cameras: tuple[str, ...] | None = None
    teachers: tuple[str, ...] | None = None
    layers: Mapping[str, Collection[str]] | None = None  # teacher -> layers


def subset(
    url: str,
    out: Path,
    cut: Cut,
    detail: str,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Cut a store.

    Args:
        url: folder or URL of the store.
        out: folder of the new one.
        cut: what stays.
        detail: the cut in words, for the manifest.
        on_part: called with parts done and parts planned.

    Raises:
        UsageError: the cut names what is not there, or nothing stays.
        CacheError: the store is damaged or not complete, or the new one cannot be written.
    """
    source = open_source(url)
    old = source.manifest.recipe
    recipe = cut_recipe(old, cut)
    plans = plan_cut(source, cut)

    def make(plan: tuple[PartEntry, tuple[int, ...] | None]) -> PartEntry:
        entry, rows = plan
        return derive_part(source.storage, entry.part, old, out, recipe, rows, entry.seal_sha256)

    history = history_of(source.manifest, "subset", detail)
    return make_store(out, [source], recipe, history, plans, make, on_part)


def cut_recipe(recipe: Recipe, cut: Cut) -> Recipe:
    """The recipe of what stays of a store.

    Raises:
        UsageError: the cut names a camera, teacher or layer that is not there.
    """
    narrow = narrow_recipe(recipe, cameras=cut.cameras, teachers=cut.teachers, layers=cut.layers)
    return narrow.model_copy(update={"selection": _selection(recipe, cut)})


def plan_cut(source: Source, cut: Cut) -> list[tuple[PartEntry, tuple[int, ...] | None]]:
    """The parts that stay, with the rows of their frames that do; None: all.

    Raises:
        UsageError: a scene is not there, or nothing stays.
    """
    scenes = source.scenes if cut.scenes is None else list(cut.scenes)
    for name in scenes:
        if name not in source.scenes:
            raise UsageError(f"scene {name!r} is not in {source.name}", it_has(name, source.scenes))
    counts = Counter({entry.scene: 0 for entry in source.manifest.parts})
    for entry in source.manifest.parts:
        counts[entry.scene] += entry.frames
    kept = {name: range(counts[name])[Selection(frames=cut.frames).frame_slice()] for name in scenes}
    plans: list[tuple[PartEntry, tuple[int, ...] | None]] = []
    done: Counter[str] = Counter()
    for entry in source.manifest.parts:  # reading order: by time within a scene
        first = done[entry.scene]
        done[entry.scene] += entry.frames
        rows = [row for row in range(entry.frames) if first + row in kept.get(entry.scene, range(0))]
        if rows:
            plans.append((entry, tuple(rows) if len(rows) < entry.frames else None))
    if not plans:
        longest = max((counts[name] for name in scenes), default=0)
        raise UsageError(
            f"nothing would stay: --frames {cut.frames} of scenes of at most {longest} frames", "widen --frames"
        )
    return plans


def _selection(recipe: Recipe, cut: Cut) -> SelectionInfo:
    before = recipe.selection
    scenes = before.scenes if cut.scenes is None else tuple(sorted(set(cut.scenes)))
    # Positions among positions have no words of their own: what was asked of the drive first stays the bound.
    return SelectionInfo(scenes=scenes, frames=cut.frames if before.frames == ":" else before.frames)


def it_has(asked: str, names: Sequence[str]) -> str:
    """The nearest name, and what there is."""
    close = difflib.get_close_matches(asked, names, n=1, cutoff=0.3)
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (f"did you mean {close[0]}? " if close else "") + f"it has {listed}"
