"""The figures of a report and of other evaluations, as bytes of picture files.

Only matplotlib's figure objects are used, never pyplot: nothing global is changed. The look is that of stage one.

Legend: n points of a panel, N points of a sweep, H = W grid cells, F frames.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from hilda_schema.style import (
    CURVES,
    DOT,
    DOT_LIMITS,
    FONT,
    GREEN,
    INK,
    LABEL,
    LINE,
    PANEL,
    PAPER,
    RING,
    RINGS_M,
    SKY,
    UNSEEN,
    VERMILION,
)
from hilda_train.evaluate.forecast import Forecast

DPI = 150
LOSSY = {"quality": 80, "method": 6}  # of WebP: for points
LOSSLESS = {"lossless": True, "quality": 80, "method": 6}  # and for curves and cells
SHADES = 16  # of probability: more would be noise in the eye, and bytes
Rgb8 = tuple[int, int, int]


def _rgb8(colour: str) -> Rgb8:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


# What became of a cell: a hit, a false alarm, a miss; what was not seen, and what was free.
HIT, FALSE_ALARM, MISS, UNOBSERVED_CELL = _rgb8(GREEN), _rgb8(SKY), _rgb8(VERMILION), _rgb8(UNSEEN)
FREE_CELL, OCCUPIED_CELL = _rgb8(PANEL), (255, 255, 255)
OUTCOMES = (
    ("#ffffff", "occupied"),
    (GREEN, "foreseen rightly"),
    (SKY, "foreseen, but free"),
    (VERMILION, "missed"),
    (UNSEEN, "not seen by the sweep"),
)


def draw_curve(name: str, steps: Sequence[int], values: Sequence[float]) -> bytes:
    """One curve over the steps, as a WebP file."""
    figure = _figure(3.6, 2.3)
    axes = figure.add_subplot()
    _style(axes, name)
    axes.plot(steps, values, color=CURVES[0], linewidth=1.3)
    axes.set_ylim(bottom=0 if min(values) >= 0 else None)
    axes.set_xlabel("step", fontsize=7.5, family=FONT, color=INK)
    figure.tight_layout(pad=0.4)
    return _webp(figure, LOSSLESS)


def draw_families(rows: Mapping[str, Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]]]) -> bytes:
    """A row of panels for each key, and in each panel curves to compare: row -> panel -> curve -> (steps, values)."""
    columns = max(len(panels) for panels in rows.values())
    figure = _figure(3.2 * columns, 2.8 * len(rows))
    names = list(dict.fromkeys(name for panels in rows.values() for curves in panels.values() for name in curves))
    for row, (heading, panels) in enumerate(rows.items()):
        for column, (title, curves) in enumerate(panels.items()):
            axes = figure.add_subplot(len(rows), columns, row * columns + column + 1)
            _style(axes, f"{heading}: {title}")
            for name, (steps, values) in curves.items():
                colour = CURVES[names.index(name) % len(CURVES)]
                axes.plot(steps, values, color=colour, linewidth=1.4, marker="o", markersize=3, label=name)
            axes.margins(y=0.15)
            axes.legend(fontsize=7, edgecolor=LINE, labelcolor=INK)
    figure.tight_layout()
    return _png(figure)


def draw_camera(size_px: tuple[int, int], uv_px: NDArray[np.floating], rgb: NDArray[np.float64]) -> bytes:
    """Points at the pixels of one camera, as a WebP file.

    Args:
        size_px: width and height of the image, which is not there: stage two opens none.
        uv_px: (n, 2).
        rgb: (n, 3).
    """
    figure = _figure(3.0, 3.0 * size_px[1] / size_px[0])
    axes = _panel(figure)
    axes.set(xlim=(-0.5, size_px[0] - 0.5), ylim=(size_px[1] - 0.5, -0.5))
    _dots(axes, uv_px, rgb)
    return _webp(figure, LOSSY)


def draw_sweep(
    xy_m: NDArray[np.floating], height_m: NDArray[np.floating], rgb: NDArray[np.float64], reach_m: float
) -> bytes:
    """A sweep from above, as a WebP file: higher points over lower ones.

    Args:
        xy_m: (N, 2) to the right and up, about the vehicle.
        height_m: (N,) any zero.
        rgb: (N, 3), NaN for a point that has no colour: it is faint and lies below.
        reach_m: half the side of the square that is shown.
    """
    figure = _figure(4.0, 4.0)
    axes = _panel(figure)
    coloured = np.isfinite(rgb).all(axis=1)
    shown = np.flatnonzero(coloured)
    shown = shown[np.argsort(height_m[shown], kind="stable")]
    _dots(axes, xy_m[~coloured], None)
    _dots(axes, xy_m[shown], rgb[shown])
    for radius in RINGS_M:
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=RING, linewidth=0.5, linestyle=(0, (4, 4))))
        if radius < reach_m:
            axes.text(0, -radius, f"{radius} m", fontsize=9, family=FONT, color=LABEL, ha="center", va="center")
    axes.plot(0, 0, marker="^", markersize=5, color=LABEL, markeredgewidth=0)
    axes.set(xlim=(-reach_m, reach_m), ylim=(-reach_m, reach_m))
    return _webp(figure, LOSSY)


def mapped(values: NDArray[np.floating], colour_map: str, low: float, high: float) -> NDArray[np.float64]:
    """(n, 3) colours of values, (n,), by a colour map from `low` to `high`; NaN stays NaN."""
    rgb: NDArray[np.float64] = matplotlib.colormaps[colour_map](np.clip((values - low) / (high - low), 0, 1))[:, :3]
    rgb[np.isnan(values)] = np.nan
    return rgb


def draw_forecasts(forecasts: Sequence[Forecast], quarters: int = 0, *, webp: bool = False) -> bytes:
    """For each forecast the present, the future, what was foreseen, and hits and misses of both.

    Args:
        forecasts: a row each.
        quarters: see `upright`.
        webp: as a WebP file instead of a PNG file.
    """
    titles = ("t0: occupied now", "t1: what came", "foreseen (probability)", "model", "carried forward")
    figure = _figure(2.1 * len(titles), 2.25 * len(forecasts))
    for row, each in enumerate(forecasts):
        panels = (
            *cells_of(each),
            outcome(each.carried, each),
        )
        for column, (title, image) in enumerate(zip(titles, panels, strict=True)):
            axes = figure.add_subplot(len(forecasts), len(titles), row * len(titles) + column + 1)
            _style(axes, title if row == 0 else "")
            axes.grid(visible=False)
            axes.set(xticks=[], yticks=[])
            axes.imshow(upright(image, quarters), interpolation="nearest")
        figure.axes[-len(titles)].set_ylabel("\n".join(each.key.rsplit("/", 1)), color=INK, fontsize=6, family=FONT)
    figure.tight_layout(pad=0.5)
    return _webp(figure, LOSSLESS) if webp else _png(figure)


def cells_of(forecast: Forecast) -> tuple[NDArray[np.uint8], ...]:
    """Four (H, W, 3) maps: occupied now, what came, what was foreseen, and what became of it."""
    return (
        _coloured(forecast.present == 1, forecast.present != 2),
        _coloured(forecast.truth == 1, forecast.observed),
        _shades(forecast.probability, forecast.observed),
        outcome(forecast.foreseen, forecast),
    )


def upright(image: NDArray[np.uint8], quarters: int) -> NDArray[np.uint8]:
    """Turn a map of cells, whose rows follow x and columns y, so that forwards is up and left is left.

    Args:
        image: (H, W, 3).
        quarters: turns, counter-clockwise from x, to the direction in which the vehicle looks (`forward_quarter`).
    """
    return np.rot90(image[::-1, ::-1], -quarters)


def strip(frames: Sequence[NDArray[np.uint8]], quarters: int) -> bytes:
    """F maps of (H, W, 3) cells below each other, a pixel for a cell, as a WebP file of F * H by W pixels."""
    stream = io.BytesIO()
    image = np.ascontiguousarray(np.concatenate([upright(frame, quarters) for frame in frames]))
    matplotlib.image.imsave(stream, image, format="webp", pil_kwargs=LOSSLESS)
    return stream.getvalue()


def outcome(predicted: NDArray[np.bool_], forecast: Forecast) -> NDArray[np.uint8]:
    """(H, W, 3) what became of each cell: hit, false alarm, miss."""
    truth = forecast.truth == 1
    image = _coloured(np.zeros_like(truth), forecast.observed)
    for mask, colour in (
        (predicted & truth, HIT),
        (predicted & ~truth & forecast.observed, FALSE_ALARM),
        (~predicted & truth, MISS),
    ):
        image[mask] = colour
    return image


def _coloured(occupied: NDArray[np.bool_], observed: NDArray[np.bool_]) -> NDArray[np.uint8]:
    image = np.full((*occupied.shape, 3), FREE_CELL, np.uint8)
    image[~observed] = UNOBSERVED_CELL
    image[occupied] = OCCUPIED_CELL
    return image


def _shades(probability: NDArray[np.float32], observed: NDArray[np.bool_]) -> NDArray[np.uint8]:
    share = np.rint(probability.clip(0, 1)[..., np.newaxis] * (SHADES - 1)) / (SHADES - 1)
    image: NDArray[np.uint8] = np.rint((1 - share) * FREE_CELL + share * OCCUPIED_CELL).astype(np.uint8)
    image[~observed] = UNOBSERVED_CELL
    return image


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _panel(figure: Figure) -> Axes:
    """A dark panel that fills the figure."""
    axes = figure.add_axes((0, 0, 1, 1), facecolor=PANEL)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _dots(axes: Axes, place: NDArray[np.floating], rgb: NDArray[np.float64] | None) -> None:
    """Points at (n, 2) places, in (n, 3) colours or faint; the more of them, the smaller."""
    share = DOT_LIMITS[0] if rgb is None else float(np.clip(DOT / max(len(place), 1) ** 0.5, *DOT_LIMITS))
    area_pt2 = (72 * max(axes.figure.bbox.size) / DPI * share) ** 2  # of the panel, which fills the figure
    axes.scatter(place[:, 0], place[:, 1], s=area_pt2, c=UNSEEN if rgb is None else rgb, linewidths=0)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, color=INK, fontsize=8, family=FONT, parse_math=False)
    axes.grid(color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=7)
    for spine in axes.spines.values():
        spine.set_color(LINE)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=PAPER, metadata={"Software": None})
    return stream.getvalue()


def _webp(figure: Figure, options: Mapping[str, object]) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="webp", facecolor=PAPER, pil_kwargs=dict(options))
    return stream.getvalue()
