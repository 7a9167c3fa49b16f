"""What colour every point has, by the question that a picture answers: plain arrays, nothing is drawn here.

Legend: N points, P drawn pairs, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hilda_schema import style
from hilda_schema.colours import Palette
from hilda_schema.content import Pairs
from hilda_schema.reader import Frame

View = Literal["cameras", "bev", "perspective", "coverage", "occlusion", "similarity"]
VIEWS: tuple[str, ...] = get_args(View)

COVERAGE = (
    ("no camera", style.UNSEEN),
    ("1 camera", style.SKY),
    ("2 cameras", style.ORANGE),
    ("3 or more", style.PURPLE),
)
VISIBLE, HIDDEN = style.SKY, style.VERMILION
COMPONENTS = (("#ff1f1f", "PC 1"), ("#1fff1f", "PC 2"), ("#1f1fff", "PC 3"))  # as the palette mixes them
LOWEST_PERCENTILE = 1.0  # of similarities: the colour bar begins here


@dataclass(frozen=True, slots=True)
class Bar:
    """A colour bar: a named colour map over a range of values."""

    about: str
    colour_map: str
    low: float
    high: float

    @property
    def ends(self) -> tuple[str, str]:
        """Its ends in words; never -0.00."""
        return f"{round(self.low, 2) + 0.0:.2f}", f"{round(self.high, 2) + 0.0:.2f}"


@dataclass(frozen=True, slots=True)
class Swatches:
    """A legend of colours with names: (#rrggbb, name)."""

    colours: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """The chosen point: its row, and the pairs that show it (rows of the paint's pairs)."""

    point: int
    pairs: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Paint:
    """Pairs to be drawn with their colours, and the same for the points of the sweep."""

    kind: str  # features, coverage, occlusion or similarity
    heading: str  # of what
    pairs: Pairs  # P of them
    pair_rgb: NDArray[np.float64]  # (P, 3) in 0..1
    point_rgb: NDArray[np.float64]  # (N, 3); NaN for a point that has no colour: it is drawn faintly
    legend: Bar | Swatches
    note: str  # what was counted, for the caption
    mark: Mark | None = None


def some_pairs(pairs: Pairs, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Pairs:
    """Some of the pairs, by mask (P,) or rows (K,)."""
    return Pairs(**{each.name: getattr(pairs, each.name)[rows] for each in fields(Pairs)})


def point_count(frame: Frame) -> int:
    """N; of a store without points, as many as its pairs know of."""
    if frame.cache.manifest.recipe.store_points:
        return len(frame.points)
    return int(frame.pairs.point.max()) + 1 if len(frame.pairs) else 0


def mean_over_cameras(values: NDArray[np.floating], point: NDArray[np.uint32], count: int) -> NDArray[np.float64]:
    """(N, K) mean of (P, K) values over the pairs of each point; NaN for a point without any."""
    seen = np.bincount(point, minlength=count)
    total = np.stack([np.bincount(point, channel, count) for channel in values.T], axis=1)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = total / seen[:, np.newaxis]
    return mean


def feature_paints(frame: Frame, teacher: str, layers: Sequence[str]) -> list[Paint]:
    """Each layer's first three principal components as red, green and blue, over all visible pairs of the frame.

    Colours mean the same in every camera and on the sweep; each layer has its own.
    """
    visible = frame.pairs.visible
    pairs = some_pairs(frame.pairs, visible)
    note = f"{len(pairs):,} visible of {len(frame.pairs):,} pairs; colours: principal components of their features"
    paints = []
    for layer in layers:
        features = frame.point_features(teacher, layer)[visible]
        rgb = Palette.of(features).colours(features)
        over = mean_over_cameras(rgb, pairs.point, point_count(frame))
        paints.append(Paint("features", f"layer {layer}", pairs, rgb, over, Swatches(COMPONENTS), note))
    return paints


def cameras_per_point(frame: Frame) -> NDArray[np.int64]:
    """(N,) by how many cameras each point is seen, occluded views not counted."""
    return np.bincount(frame.pairs.point[frame.pairs.visible], minlength=point_count(frame)).astype(np.int64)


def coverage_paint(frame: Frame) -> Paint:
    """How many cameras see each point."""
    count = cameras_per_point(frame)
    kind = np.minimum(count, len(COVERAGE) - 1)
    rgb = np.array([_rgb(colour) for _, colour in COVERAGE])[kind]
    pairs = some_pairs(frame.pairs, frame.pairs.visible)
    numbers = np.bincount(kind, minlength=len(COVERAGE))
    shares = numbers / max(len(count), 1)
    legend = [
        (colour, f"{name} {share:.1%}") for (name, colour), share, n in zip(COVERAGE, shares, numbers, strict=True) if n
    ]
    note = f"{int((count > 0).sum()):,} of {len(count):,} points are seen by a camera"
    over = np.where((count > 0)[:, np.newaxis], rgb, np.nan)
    return Paint("coverage", "all cameras", pairs, rgb[pairs.point], over, Swatches(tuple(legend)), note)


def occlusion_paint(frame: Frame) -> Paint:
    """Which points lie within an image but behind a nearer surface: hidden there, or seen by no camera at all."""
    pairs = frame.pairs
    shown, hidden = _rgb(VISIBLE), _rgb(HIDDEN)
    count = cameras_per_point(frame)
    over = np.full((len(count), 3), np.nan)
    over[pairs.point] = hidden
    over[count > 0] = shown
    number = int((~pairs.visible).sum())
    legend = ((VISIBLE, "visible"), (HIDDEN, "hidden by a nearer surface"))
    note = f"{number:,} of {len(pairs):,} pairs are hidden"
    rgb = np.where(pairs.visible[:, np.newaxis], shown, hidden)
    return Paint("occlusion", "all cameras", pairs, rgb, over, Swatches(legend), note)


def similarities(features: NDArray[np.floating], chosen: int) -> NDArray[np.float64]:
    """(P,) cosine between each row of (P, C) features and the chosen row, after the mean of all is taken off.

    Without that a channel that is large everywhere, as vision transformers have them, makes all rows alike. A row that
    equals the mean is like nothing (0); the chosen one is like itself (1).
    """
    rows = features - features.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(rows, axis=1)
    cosine: NDArray[np.float64] = rows @ rows[chosen] / np.maximum(length * length[chosen], 1e-300)
    cosine[chosen] = 1.0
    return np.clip(cosine, -1.0, 1.0)


def similarity_paints(frame: Frame, teacher: str, layers: Sequence[str], chosen: int) -> list[Paint]:
    """How alike every pair's feature is to that of a chosen pair: their cosine about the mean of all visible pairs.

    Args:
        frame: the frame.
        teacher: a stored teacher.
        layers: names of stored layers.
        chosen: row of a visible pair of the frame.

    Returns:
        One paint a layer. A point that several cameras see has the largest of its values.
    """
    visible = np.flatnonzero(frame.pairs.visible)
    pairs = some_pairs(frame.pairs, visible)
    row = int(np.searchsorted(visible, chosen))
    point = int(pairs.point[row])
    mark = Mark(point, (row,))
    where = f"marked: point {point:,}, {frame.camera_names[pairs.camera[row]]} {_pixel(pairs.uv_px[row])}"
    paints = []
    for layer in layers:
        cosine = similarities(frame.point_features(teacher, layer)[visible], row)
        best = np.full(point_count(frame), -np.inf)
        np.maximum.at(best, pairs.point, cosine)
        low = float(np.percentile(cosine, LOWEST_PERCENTILE))
        bar = Bar("cosine", style.COSINE_MAP, min(low, 0.9), 1.0)
        over = np.where(np.isfinite(best)[:, np.newaxis], mapped(bar, best), np.nan)
        note = f"{where}; cosine after the mean of {len(pairs):,} visible pairs is taken off"
        paints.append(Paint("similarity", f"layer {layer}", pairs, mapped(bar, cosine), over, bar, note, mark))
    return paints


def mapped(bar: Bar, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, 3) colours of values by a colour bar; beyond its ends they are those of the ends."""
    import matplotlib

    share = np.clip((values - bar.low) / (bar.high - bar.low), 0, 1)
    rgb: NDArray[np.float64] = matplotlib.colormaps[bar.colour_map](share)[:, :3]
    return rgb


def _rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])


def _pixel(uv_px: NDArray[np.float64]) -> str:
    return f"({uv_px[0]:.0f}, {uv_px[1]:.0f})"
