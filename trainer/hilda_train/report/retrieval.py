"""The picture of `hilda-train retrieve`: a column a frame, from above and in the camera that sees the point."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hilda_schema.style import COSINE_MAP, FONT, INK, PANEL, PAPER, REACH_M, SKY, UNSEEN
from hilda_train.evaluate.retrieval import Alike, limits

_INCHES = 2.6  # of a panel
_DOT_PT2 = 0.8


def draw_retrieval(found: Sequence[Alike]) -> bytes:
    """A PNG.

    Args:
        found: the frame asked for first.
    """
    figure = Figure(figsize=(_INCHES * len(found), 1.75 * _INCHES), dpi=150, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(found), squeeze=False, height_ratios=(1, 0.6))
    scale = limits(found)
    for column, each in enumerate(found):
        cosine = each.cosine[each.best]
        what = "asked for" if column == 0 else f"{each.after_s:+.1f} s, cosine {cosine:.3f}"
        _panel(axes[0, column], f"{each.key.split('/', 1)[1][:28]}\n{what}")
        xy_m, height = each.xyz_m[:, :2], each.xyz_m[:, 2]
        _points(axes[0, column], xy_m, each.cosine, np.argsort(height, kind="stable"), scale)
        _mark(axes[0, column], xy_m[each.best])
        reach_m = float(np.clip(np.quantile(np.abs(xy_m), 0.9), *REACH_M))
        axes[0, column].set(xlim=(-reach_m, reach_m), ylim=(-reach_m, reach_m), aspect="equal")
        _panel(axes[1, column], each.camera or "no camera sees it")
        if each.shown >= 0:
            cosine_of_pairs = each.cosine[each.pair_point]
            _points(axes[1, column], each.uv_px, cosine_of_pairs, np.argsort(cosine_of_pairs, kind="stable"), scale)
            _mark(axes[1, column], each.uv_px[each.pair_point == each.shown][0])
        width_px, height_px = each.size_px
        axes[1, column].set(xlim=(-0.5, width_px - 0.5), ylim=(height_px - 0.5, -0.5), aspect="equal")
    figure.tight_layout(pad=0.5)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=PAPER, metadata={"Software": None})
    return stream.getvalue()


def _panel(axes: Axes, title: str) -> None:
    axes.set_title(title, color=INK, fontsize=7, family=FONT, parse_math=False)
    axes.set(xticks=[], yticks=[], facecolor=PANEL)


def _points(
    axes: Axes,
    place: NDArray[np.floating],
    cosine: NDArray[np.float32],
    order: NDArray[np.intp],
    scale: tuple[float, float],
) -> None:
    """Points in the order given, the last on top; those that the student does not see are faint and lie below."""
    known = ~np.isnan(cosine)
    axes.scatter(place[~known, 0], place[~known, 1], s=_DOT_PT2, c=UNSEEN, linewidths=0)
    order = order[known[order]]
    x, y = place[order].T
    low, high = scale
    axes.scatter(x, y, s=_DOT_PT2, c=cosine[order], cmap=COSINE_MAP, vmin=low, vmax=high, linewidths=0)


def _mark(axes: Axes, place: NDArray[np.floating]) -> None:
    axes.scatter([place[0]], [place[1]], s=90, facecolors="none", edgecolors=SKY, linewidths=1.4)
