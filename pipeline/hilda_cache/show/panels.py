"""One panel each: points over a camera's image, the sweep from above, the sweep in perspective, a legend.

Only matplotlib's figure objects are used, never pyplot: nothing global is changed, and the same input gives the same
bytes wherever the same version of matplotlib is installed.

Legend: N points, P pairs, n pairs of one camera.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from hilda_cache.show.layout import Box
from hilda_cache.show.paint import Bar, Swatches, mapped
from hilda_cache.show.viewpoint import NEAREST_M, in_perspective
from hilda_schema.style import DOT, DOT_LIMITS, FONT, INK, LABEL, PANEL, REACH_M, RING, RINGS_M, SOFT, UNSEEN

DIM, GREY_SHARE = 0.6, 0.65  # the image behind the points: darker, and mostly grey so that hues belong to features
NEAR_M, SPARSE = 8.0, 4000
POINT, POINT_LIMITS = 0.010, (0.0042, 0.014)
"""Diameter of a point at `NEAR_M`, one of `SPARSE` in its panel, over the square root of the panel's area."""
SMALL, TINY = 6.0, 5.0  # of words, in points
BAR = 0.8  # inches, of a colour bar

Rgb = NDArray[np.float64]


def panel(figure: Figure, box: Box, name: str = "") -> Axes:
    """A dark panel without ticks or margins; its name, if any, in the upper left corner."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    place = (box.left / width, 1 - (box.top + box.height) / height, box.width / width, box.height / height)
    axes = figure.add_axes(place, facecolor=PANEL)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if name:
        x, y = 0.04 / box.width, 1 - 0.04 / box.height
        label(axes, x, y, name, va="top", transform=axes.transAxes)
    return axes


def label(axes: Axes, x: float, y: float, words: str, **more: Any) -> None:
    """Words on a panel, readable on whatever is behind them; names come from datasets and may hold a dollar sign."""
    outline = [withStroke(linewidth=1.2, foreground=PANEL)]
    axes.text(
        x, y, words, fontsize=SMALL, family=FONT, color=LABEL, zorder=6, parse_math=False, path_effects=outline,
        clip_on=True, **more,
    )  # fmt: skip


def dim(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Darken (H, W, 3) RGB and take out most of its colour, so that the colours of points stand out."""
    grey = image @ np.array([0.299, 0.587, 0.114])  # Rec. 601 luma
    dimmed = DIM * (GREY_SHARE * grey[..., np.newaxis] + (1 - GREY_SHARE) * image)
    rounded: NDArray[np.uint8] = np.rint(dimmed).astype(np.uint8)
    return rounded


def draw_camera(
    axes: Axes,
    box: Box,
    size_px: tuple[int, int],
    image: NDArray[np.uint8] | None,
    uv_px: NDArray[np.float64],
    depth_m: NDArray[np.float32],
    rgb: Rgb,
    visible: NDArray[np.bool_],
) -> None:
    """Points of one camera over its dimmed image: nearer ones larger, and over farther ones; hidden ones on top.

    Args:
        axes: the panel; it then spans the image, pixel centres at integers.
        box: its place on the page.
        size_px: width and height of the image.
        image: (H, W, 3) RGB; None leaves the panel dark.
        uv_px: (n, 2).
        depth_m: (n,).
        rgb: (n, 3).
        visible: (n,) whether no nearer surface hides it.
    """
    left, right, bottom, top = -0.5, size_px[0] - 0.5, size_px[1] - 0.5, -0.5
    if image is not None:
        axes.imshow(dim(image), extent=(left, right, bottom, top), interpolation="antialiased")
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    order = np.lexsort((-depth_m, ~visible))
    crowding = min(1.2, (SPARSE / max(len(order), 1)) ** 0.5)
    share = POINT * crowding * np.sqrt(NEAR_M / np.maximum(depth_m[order], 1e-3))
    area_pt2 = (72 * (box.width * box.height) ** 0.5 * np.clip(share, *POINT_LIMITS)) ** 2
    _dots(axes, uv_px[order], area_pt2, rgb[order])


def _dots(axes: Axes, place: NDArray[np.floating], area_pt2: float | NDArray[np.floating], rgb: Rgb | None) -> None:
    """Points at (n, 2) places in (n, 3) colours, or faint; later ones over earlier ones."""
    axes.scatter(place[:, 0], place[:, 1], s=area_pt2, c=UNSEEN if rgb is None else rgb, linewidths=0, zorder=2)


def draw_from_above(axes: Axes, box: Box, xy_m: NDArray[np.floating], height_m: NDArray[np.floating], rgb: Rgb) -> None:
    """The sweep as a map: higher points over lower ones, those without a colour faint and below.

    Args:
        axes: the panel.
        box: its place on the page.
        xy_m: (N, 2) as they are drawn, about the vehicle.
        height_m: (N,) any zero.
        rgb: (N, 3), NaN where a point has no colour.
    """
    coloured = np.isfinite(rgb).all(axis=1)
    dots_pt = 72 * max(box.width, box.height)
    faint = np.flatnonzero(~coloured)
    _dots(axes, xy_m[faint], (dots_pt * DOT_LIMITS[0]) ** 2, None)
    shown = np.flatnonzero(coloured)
    shown = shown[np.argsort(height_m[shown], kind="stable")]
    size_pt = dots_pt * float(np.clip(DOT / max(len(shown), 1) ** 0.5, *DOT_LIMITS))
    _dots(axes, xy_m[shown], size_pt**2, rgb[shown])
    far_m = float(np.percentile(np.abs(xy_m[shown]), 95)) if len(shown) else 0.0
    reach_m = min(max(far_m, REACH_M[0]), REACH_M[1])
    for radius in RINGS_M:
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=RING, linewidth=0.4, linestyle=(0, (4, 4))))
        if radius < reach_m:
            label(axes, 0, -radius, f"{radius} m", ha="center", va="center")
    shorter = min(box.width, box.height)
    across_m, up_m = reach_m * box.width / shorter, reach_m * box.height / shorter
    axes.set(xlim=(-across_m, across_m), ylim=(-up_m, up_m))


def draw_in_perspective(axes: Axes, box: Box, over_ground_m: NDArray[np.floating], rgb: Rgb) -> None:
    """The sweep from behind and above the vehicle, nearer points larger and over farther ones.

    Args:
        axes: the panel.
        box: its place on the page.
        over_ground_m: (N, 3) x forwards, y left, z over the ground.
        rgb: (N, 3), NaN where a point has no colour.
    """
    aspect = box.height / box.width
    axes.set(xlim=(-1, 1), ylim=(-aspect, aspect))
    _draw_rings_in_perspective(axes)
    place, depth_m = in_perspective(over_ground_m)
    coloured = np.isfinite(rgb).all(axis=1)
    within = (depth_m > NEAREST_M) & (np.abs(place) < (1.02, 1.02 * aspect)).all(axis=1)
    for rows, colour in ((within & ~coloured, None), (within & coloured, rgb)):
        order = np.flatnonzero(rows)
        order = order[np.argsort(-depth_m[order], kind="stable")]
        share = np.clip(0.075 / np.maximum(depth_m[order], 1), *DOT_LIMITS) * (1.0 if colour is not None else 0.6)
        area_pt2 = (72 * box.width * share) ** 2
        _dots(axes, place[order], area_pt2, None if colour is None else colour[order])


def _draw_rings_in_perspective(axes: Axes) -> None:
    turn = np.linspace(0, 2 * np.pi, 181)
    for radius in RINGS_M:
        ring = radius * np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1)
        place, depth_m = in_perspective(ring)
        place[depth_m < NEAREST_M] = np.nan
        axes.plot(*place.T, color=RING, linewidth=0.4, linestyle=(0, (4, 4)), zorder=1)
        ahead, _ = in_perspective(np.array([[radius, 0.0, 0.0]]))
        label(axes, ahead[0, 0], ahead[0, 1], f"{radius} m", ha="center", va="center")
    arrow, _ = in_perspective(np.array([[1.6, 0, 0], [-1.2, 0.9, 0], [-0.6, 0, 0], [-1.2, -0.9, 0]]))
    axes.fill(*arrow.T, color=LABEL, zorder=5, linewidth=0)


def draw_mark(axes: Axes, x: float, y: float) -> None:
    """A ring around the chosen point, with a cross of hairs, white on black."""
    for colour, width in (("#000000", 1.8), (LABEL, 0.9)):
        axes.plot(x, y, marker="o", markersize=7, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=width,
                  zorder=7)  # fmt: skip
        axes.plot(x, y, marker="+", markersize=13, markeredgecolor=colour, markeredgewidth=width * 0.6, zorder=7)


def write(figure: Figure, left: float, top: float, words: str, size: float, **more: Any) -> float:
    """Words on the paper, inches from its upper left corner; their width in inches."""
    x, y = left / figure.get_figwidth(), 1 - top / figure.get_figheight()
    style: dict[str, Any] = {"color": INK, "va": "center_baseline", "family": FONT, "parse_math": False}
    written = figure.text(x, y, words, fontsize=size, **(style | more))
    return float(written.get_window_extent().width / figure.dpi)


def draw_legend(figure: Figure, box: Box, legend: Bar | Swatches) -> None:
    """A colour bar or named colours, flush right in a heading."""
    middle, right = box.top + box.height / 2, box.left + box.width - 0.03
    if isinstance(legend, Bar):
        _draw_bar(figure, right, middle, legend)
        return
    for colour, name in reversed(legend.colours):
        right -= write(figure, right, middle, name, SMALL, ha="right") + 0.12
        _patch(figure, Box(right, middle - 0.04, 0.08, 0.08), colour)
        right -= 0.1


def _draw_bar(figure: Figure, right: float, middle: float, bar: Bar) -> None:
    low, high = bar.ends
    right -= write(figure, right, middle, high, SMALL, ha="right") + 0.04
    axes = panel(figure, Box(right - BAR, middle - 0.04, BAR, 0.08))
    ramp = mapped(bar, np.linspace(bar.low, bar.high, 256))
    axes.imshow(ramp[np.newaxis], aspect="auto", interpolation="nearest")
    write(figure, right - BAR - 0.04, middle, f"{bar.about}  {low}", SMALL, ha="right")


def _patch(figure: Figure, box: Box, colour: str) -> None:
    width, height = figure.get_figwidth(), figure.get_figheight()
    place = (box.left / width, 1 - (box.top + box.height) / height)
    figure.add_artist(
        Rectangle(place, box.width / width, box.height / height, facecolor=colour, edgecolor=SOFT, linewidth=0.3)
    )
