"""The figures of a report, as bytes of PNG files.

Only matplotlib's figure objects are used, never pyplot: nothing global is changed.

Legend: P pairs, N points, H = W grid cells.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hilda_train.evaluate.forecast import Forecast

DPI = 110
PAPER, PANEL, INK, FAINT = "#0d1117", "#161b22", "#e6edf3", "#484f58"
LINES = ("#58a6ff", "#f0883e", "#3fb950", "#d2a8ff", "#ff7b72", "#e3b341")
REACH_M = 50.0  # of a view from above

# What became of a cell: a hit, a false alarm, a miss; and what was not seen.
HIT, FALSE_ALARM, MISS, UNSEEN = (63, 185, 80), (88, 166, 255), (255, 123, 114), (33, 38, 45)


def draw_curves(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> bytes:
    """One panel for each curve: name -> (steps, values)."""
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure(3.6 * columns, 2.6 * rows)
    for number, (name, (steps, values)) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        _style(axes, name)
        axes.plot(steps, values, color=LINES[number % len(LINES)], linewidth=1.4)
        axes.set_ylim(bottom=0 if min(values) >= 0 else None)
        axes.grid(color=FAINT, linewidth=0.4)
        axes.tick_params(colors=INK, labelsize=8)
    figure.tight_layout()
    return _png(figure)


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
                colour = LINES[names.index(name) % len(LINES)]
                axes.plot(steps, values, color=colour, linewidth=1.4, marker="o", markersize=3, label=name)
            axes.margins(y=0.15)
            axes.grid(color=FAINT, linewidth=0.4)
            axes.tick_params(colors=INK, labelsize=8)
            axes.legend(fontsize=7, facecolor=PANEL, edgecolor=FAINT, labelcolor=INK)
    figure.tight_layout()
    return _png(figure)


def draw_features(
    cameras: Mapping[str, tuple[tuple[int, int], NDArray[np.floating], Mapping[str, NDArray[np.float64]]]],
    xyz_m: NDArray[np.float32],
    above: Mapping[str, NDArray[np.float64]],
    seen: NDArray[np.bool_],
) -> bytes:
    """Teacher and student side by side, at the pixels of each camera and from above.

    Args:
        cameras: name -> ((width, height) in pixels, (P, 2) pixels (u, v), heading -> (P, 3) colours).
        xyz_m: (N, 3) LiDAR frame.
        above: heading -> (N, 3) colours of all points; a heading whose points are not all known has NaN rows.
        seen: (N,) whether a camera sees the point.
    """
    headings = list(above)
    columns = 2 * len(headings)
    rows = -(-len(cameras) // 2)
    figure = _figure(4.0 * columns, 2.4 * rows + 8.2)
    grid = figure.add_gridspec(
        rows + 1, columns, height_ratios=[2.4] * rows + [8.0], wspace=0.02, hspace=0.12,
        left=0.01, right=0.99, top=0.97, bottom=0.01,
    )  # fmt: skip
    for number, (name, (size_px, uv_px, colours)) in enumerate(cameras.items()):
        row, side = divmod(number, 2)
        for k, heading in enumerate(headings):
            axes = figure.add_subplot(grid[row, side * len(headings) + k])
            _style(axes, f"{name}: {heading}")
            _blank(axes)
            axes.set(xlim=(-0.5, size_px[0] - 0.5), ylim=(size_px[1] - 0.5, -0.5), aspect="equal")
            axes.scatter(uv_px[:, 0], uv_px[:, 1], s=2.5, c=colours[heading], linewidths=0)
    for k, heading in enumerate(headings):
        axes = figure.add_subplot(grid[rows, 2 * k : 2 * k + 2])
        _style(axes, f"from above: {heading}")
        _blank(axes)
        axes.set(xlim=(REACH_M, -REACH_M), ylim=(-REACH_M, REACH_M), aspect="equal")  # x up, y to the left
        known = np.isfinite(above[heading]).all(axis=1)
        for chosen, size in ((known & ~seen, 0.8), (known & seen, 1.6)):
            axes.scatter(xyz_m[chosen, 1], xyz_m[chosen, 0], s=size, c=above[heading][chosen], linewidths=0)
        axes.plot(0, 0, marker="^", markersize=6, color=INK)
    return _png(figure)


def draw_forecasts(forecasts: Sequence[Forecast]) -> bytes:
    """For each forecast the present, the future, what was foreseen, and hits and misses of both forecasts."""
    titles = ("t0: occupied now", "t1: what came", "foreseen (probability)", "model", "carried forward")
    figure = _figure(3.1 * len(titles), 3.3 * len(forecasts))
    for row, each in enumerate(forecasts):
        panels = (
            _coloured(each.present == 1, each.present != 2),
            _coloured(each.truth == 1, each.observed),
            _shades(each.probability, each.observed),
            outcome(each.foreseen, each),
            outcome(each.carried, each),
        )
        for column, (title, image) in enumerate(zip(titles, panels, strict=True)):
            axes = figure.add_subplot(len(forecasts), len(titles), row * len(titles) + column + 1)
            _style(axes, title if row == 0 else "")
            _blank(axes)
            # Row 0 of a grid lies behind the vehicle and column 0 to its right; forwards is up, left is left.
            axes.imshow(image[::-1, ::-1], interpolation="nearest")
        figure.axes[-len(titles)].set_ylabel(each.key, color=INK, fontsize=7)
    figure.tight_layout()
    return _png(figure)


def outcome(predicted: NDArray[np.bool_], forecast: Forecast) -> NDArray[np.uint8]:
    """(H, W, 3) what became of each cell: hit, false alarm, miss."""
    truth = forecast.truth == 1
    image = np.zeros((*truth.shape, 3), np.uint8)
    image[~forecast.observed] = UNSEEN
    for mask, colour in (
        (predicted & truth, HIT),
        (predicted & ~truth & forecast.observed, FALSE_ALARM),
        (~predicted & truth, MISS),
    ):
        image[mask] = colour
    return image


def _coloured(occupied: NDArray[np.bool_], observed: NDArray[np.bool_]) -> NDArray[np.uint8]:
    image = np.zeros((*occupied.shape, 3), np.uint8)
    image[~observed] = UNSEEN
    image[occupied] = 255
    return image


def _shades(probability: NDArray[np.float32], observed: NDArray[np.bool_]) -> NDArray[np.uint8]:
    image = np.repeat((255 * probability.clip(0, 1)).astype(np.uint8)[..., np.newaxis], 3, axis=2)
    image[~observed] = UNSEEN
    return image


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes, title: str) -> None:
    axes.set_facecolor(PANEL)
    axes.set_title(title, color=INK, fontsize=8.5, parse_math=False)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _blank(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=PAPER, metadata={"Software": None})
    return stream.getvalue()
