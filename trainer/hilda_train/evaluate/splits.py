"""Which frames train and which test, and the two ways in which the literature takes a few of them.

"1 % of nuScenes" is every 100th scene of the training split where SLidR's line says it (7 scenes), and frames spread
over the whole split elsewhere. The second sees a hundred times as many places and scores some 7 points higher, so a
result says which it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hilda_schema.errors import UsageError
from hilda_schema.reader import Cache
from hilda_train.prepare import matches, require_scenes

Place = tuple[int, int]
"""A cache's number and the row of a frame."""

RULES = ("scenes", "frames")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user asked for."""

    scenes: tuple[str, ...]  # patterns
    but_not: tuple[str, ...]  # patterns of scenes that are left out
    frames: tuple[int, int | None] | None  # half-open positions within each scene; None: all
    named: str  # where it was written, for messages


def parse_frames(text: str | None, option: str) -> tuple[int, int | None] | None:
    """A half-open range of positions, "0:40", ":40" or "45:".

    Raises:
        UsageError: something else, or an empty range.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if not match:
        raise UsageError(f"{option} {text!r} is not a range of frames", "write e.g. 0:40, the first forty of a scene")
    start, stop = int(match[1] or 0), int(match[2]) if match[2] else None
    if stop is not None and stop <= start:
        raise UsageError(f"{option} {text!r} is an empty range", "its end is not included: 0:40 is 0 to 39")
    return start, stop


def frames_of(caches: Sequence[Cache], wanted: Wanted) -> list[Place]:
    """Frames that are asked for: caches as given, scenes by name, frames by time.

    Raises:
        UsageError: a pattern names no scene, or nothing is left.
    """
    require_scenes(caches, (*wanted.scenes, *wanted.but_not), wanted.named)
    start, stop = wanted.frames or (0, None)
    found: list[Place] = []
    for number, cache in enumerate(caches):
        rows: dict[str, list[tuple[int, int]]] = {}
        columns = (cache.frames[name].to_pylist() for name in ("scene", "stamp_ns"))
        for row, (scene, stamp_ns) in enumerate(zip(*columns, strict=True)):
            rows.setdefault(scene, []).append((stamp_ns, row))
        chosen = [scene for scene in sorted(rows) if matches(scene, wanted.scenes)]
        for scene in chosen:
            if not matches(scene, wanted.but_not):
                found += [(number, row) for _, row in sorted(rows[scene])[start:stop]]
    if not found:
        raise UsageError(f"no frame is left by {wanted.named}", "hilda-cache info names the scenes")
    return found


def require_apart(train: Sequence[Place], test: Sequence[Place], caches: Sequence[Cache]) -> None:
    """Refuse to test on what was trained on.

    Raises:
        UsageError: naming a frame that is in both.
    """
    if both := set(train) & set(test):
        cache, row = min(both)
        raise UsageError(
            f"{len(both)} frames would be trained on and tested on, e.g. {caches[cache].frames['key'][row].as_py()}",
            "give --train-scenes and --test-scenes, or --train-frames and --test-frames, that share none",
        )


def labelled(caches: Sequence[Cache], places: Sequence[Place]) -> list[Place]:
    """Those frames whose points have labels.

    Raises:
        UsageError: none has.
    """
    found = [place for place in places if "label" in caches[place[0]][place[1]].point_columns]
    if not found:
        urls = ", ".join(dict.fromkeys(caches[cache].url for cache, _ in places))
        raise UsageError(
            f"none of {len(places)} frames has labels (points/label) in {urls}",
            "extract the cache again from a drive with labels, e.g. with nuScenes' lidarseg beside its tables",
        )
    return found


def few(caches: Sequence[Cache], places: Sequence[Place], share_percent: float, rule: str) -> list[Place]:
    """A share of the frames, always the same.

    Args:
        caches: that hold them.
        places: in the order of `frames_of`.
        share_percent: 100 / k for a whole number k.
        rule: every k-th scene with all of its frames, or every k-th frame; the first is always taken.

    Raises:
        UsageError: another share, or another rule.
    """
    if rule not in RULES:
        raise UsageError(f"--split {rule} is not known", f"use {' or '.join(RULES)}")
    every = round(100 / share_percent) if 0 < share_percent <= 100 else 0
    if not every or abs(every * share_percent - 100) > 1e-6:
        raise UsageError(f"--share {share_percent:g} is not one k-th of 100 %", "use e.g. 1, 5, 10, 25 or 100")
    if rule == "frames":
        return list(places[::every])
    scenes = list(dict.fromkeys(scene_of(caches, place) for place in places))
    chosen = set(scenes[::every])
    return [place for place in places if scene_of(caches, place) in chosen]


def scene_of(caches: Sequence[Cache], place: Place) -> tuple[int, str]:
    """The cache's number and the scene of a frame."""
    return place[0], str(caches[place[0]].frames["scene"][place[1]].as_py())
