"""Draws a picture from plain arrays: coloured points over each camera, and from above.

Only matplotlib's figure objects are used, never pyplot: nothing global is changed, and the same input gives the same
bytes wherever the same version of matplotlib is installed.

Legend: N points, P pairs, n pairs of one camera.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from hilda_cache.show.layout import PAGE, Block, Box, paginate
from hilda_schema.content import Pairs

DPI = 150  # 2400 pixels wide
FONT = "DejaVu Sans"  # comes with matplotlib
PAPER, PANEL, FAINT, TEXT, UNSEEN = "#0d1117", "#161b22", "#484f58", "#e6edf3", "#30363d"
DIM, GREY_SHARE = 0.6, 0.65  # the image behind the points: darker, and mostly grey so that hues belong to features
NEAR_M, SPARSE = 8.0, 4000
POINT, POINT_LIMITS = 0.008, (0.003, 0.012)
"""Diameter of a point at `NEAR_M`, one of `SPARSE` in its panel, over the square root of the panel's area."""
REACH_M = (15.0, 60.0)  # the view from above shows at least, at most
RINGS_M = (10, 20, 40)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """All that is drawn."""

    title: str
    caption: str
    camera_sizes_px: Mapping[str, tuple[int, int]]  # in the order of `pairs.camera`; (0, 0) for one that is absent
    pairs: Pairs
    colours: Mapping[str, NDArray[np.float64]]  # heading -> (P, 3) in 0..1; one block of panels each
    images: Mapping[str, NDArray[np.uint8]]  # camera -> (H, W, 3) RGB
    xyz_m: NDArray[np.float32] | None  # (N, 3) LiDAR frame; None: no view from above


def draw(picture: Picture) -> bytes:
    """Draw.

    Returns:
        The bytes of a PNG file, without date or program in it.
    """
    page = paginate(picture.camera_sizes_px, len(picture.colours), picture.xyz_m is not None)
    figure = Figure(figsize=(PAGE, page.height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    _write(figure, Box(0.12, 0.21, 0, 0), picture.title, 13, weight="bold")
    _write(figure, Box(0.12, page.height - 0.15, 0, 0), picture.caption, 8.5)
    for block, (heading, colours) in zip(page.blocks, picture.colours.items(), strict=True):
        _draw_block(figure, block, heading, picture, colours)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, facecolor=PAPER, metadata={"Software": None})
    return png.getvalue()


def _draw_block(figure: Figure, block: Block, heading: str, picture: Picture, colours: NDArray[np.float64]) -> None:
    if block.heading.height:
        middle = Box(block.heading.left + 0.06, block.heading.top + block.heading.height / 2, 0, 0)
        _write(figure, middle, heading, 11, weight="bold")
    for number, (name, size_px) in enumerate(picture.camera_sizes_px.items()):
        if name in block.cameras:
            mine = picture.pairs.camera == number
            box = block.cameras[name]
            axes = _axes(figure, box, name)
            _draw_image(axes, size_px, picture.images.get(name))
            uv_px, depth_m = picture.pairs.uv_px[mine], picture.pairs.depth_m[mine]
            _draw_points(axes, 72 * (box.width * box.height) ** 0.5, uv_px, depth_m, colours[mine])
    if block.above is not None and picture.xyz_m is not None:
        cameras = list(picture.camera_sizes_px)
        axes = _axes(figure, block.above, f"from above, forwards {'right' if block.is_wide else 'up'}")
        turns = forward_quarter(cameras, picture.pairs, picture.xyz_m) - (0 if block.is_wide else 1)
        _draw_above(axes, block.above, turn_about(picture.xyz_m, -turns), picture.pairs.point, colours)
        axes.plot(0, 0, marker=">" if block.is_wide else "^", markersize=7, color=TEXT, zorder=4)


def _write(figure: Figure, at: Box, text: str, size: float, weight: str = "normal") -> None:
    x, y = at.left / figure.get_figwidth(), 1 - at.top / figure.get_figheight()
    figure.text(x, y, text, fontsize=size, family=FONT, weight=weight, color=TEXT, va="center", parse_math=False)


def _axes(figure: Figure, box: Box, name: str) -> Axes:
    """A panel with its name in the upper left corner and no frame, ticks or margins."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    place = (box.left / width, 1 - (box.top + box.height) / height, box.width / width, box.height / height)
    axes = figure.add_axes(place, facecolor=PANEL)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.text(
        0.05 / box.width,
        1 - 0.05 / box.height,
        name,
        transform=axes.transAxes,
        fontsize=8.5,
        family=FONT,
        color=TEXT,
        va="top",
        zorder=5,
        parse_math=False,  # names come from datasets and may hold a dollar sign
        path_effects=[withStroke(linewidth=2, foreground=PAPER)],
    )
    return axes


def dim(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Darken (H, W, 3) RGB and take out most of its colour, so that the colours of points stand out."""
    grey = image @ np.array([0.299, 0.587, 0.114])  # Rec. 601 luma
    dimmed = DIM * (GREY_SHARE * grey[..., np.newaxis] + (1 - GREY_SHARE) * image)
    rounded: NDArray[np.uint8] = np.rint(dimmed).astype(np.uint8)
    return rounded


def _draw_image(axes: Axes, size_px: tuple[int, int], image: NDArray[np.uint8] | None) -> None:
    """The dimmed image, or nothing; the panel then spans the image, pixel centres at integers."""
    left, right, bottom, top = -0.5, size_px[0] - 0.5, size_px[1] - 0.5, -0.5
    if image is not None:
        axes.imshow(dim(image), extent=(left, right, bottom, top), interpolation="antialiased")
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")


def _draw_points(
    axes: Axes,
    scale_pt: float,
    uv_px: NDArray[np.float64],
    depth_m: NDArray[np.float32],
    colours: NDArray[np.float64],
) -> None:
    """Points of one camera: nearer ones larger, and over farther ones.

    Args:
        axes: the panel.
        scale_pt: square root of its area, in 1/72 inch.
        uv_px: (n, 2).
        depth_m: (n,).
        colours: (n, 3).
    """
    order = np.argsort(-depth_m, kind="stable")
    crowding = min(1.2, (SPARSE / max(len(order), 1)) ** 0.5)
    share = POINT * crowding * np.sqrt(NEAR_M / np.maximum(depth_m[order], 1e-3))
    area_pt2 = (scale_pt * np.clip(share, *POINT_LIMITS)) ** 2
    u, v = uv_px[order].T
    axes.scatter(u, v, s=area_pt2, c=colours[order], linewidths=0)


def forward_quarter(cameras: list[str], pairs: Pairs, xyz_m: NDArray[np.float32]) -> int:
    """Quarter turns, counter-clockwise from the LiDAR's x axis, to the direction in which the vehicle looks.

    Datasets differ (x in KITTI, y in PandaSet), the front camera does not: forwards is where its points lie.
    Without a camera that names itself so it is where the first camera looks.
    """
    front = [number for number, name in enumerate(cameras) if "front" in name.lower()]
    ahead = min(front, key=lambda number: len(cameras[number]), default=0)  # "front" before "front_left"
    rows = pairs.point[pairs.camera == ahead]
    bearing = np.arctan2(xyz_m[rows, 1], xyz_m[rows, 0], dtype=np.float64)
    mean = float(np.arctan2(np.sin(bearing).sum(), np.cos(bearing).sum()))
    return round(mean / (np.pi / 2))


def turn_about(xyz_m: NDArray[np.float32], quarters: int) -> NDArray[np.float32]:
    """(N, 2): x and y, turned counter-clockwise by quarters."""
    x, y = xyz_m[:, 0], xyz_m[:, 1]
    return np.stack([(x, y), (-y, x), (-x, -y), (y, -x)][quarters % 4], axis=1)


def _draw_above(
    axes: Axes, box: Box, xy_m: NDArray[np.float32], point: NDArray[np.uint32], colours: NDArray[np.float64]
) -> None:
    """Points that a camera sees in the mean of their colours, the others faint.

    Args:
        axes: the panel.
        box: its place on the page.
        xy_m: (N, 2) as they are drawn.
        point: (P,) row of each pair's point.
        colours: (P, 3).
    """
    count = np.bincount(point, minlength=len(xy_m))
    seen, unseen = np.flatnonzero(count), np.flatnonzero(count == 0)
    total = np.stack([np.bincount(point, channel, len(xy_m)) for channel in colours.T], axis=1)
    axes.scatter(xy_m[unseen, 0], xy_m[unseen, 1], s=0.15, color=UNSEEN, linewidths=0)
    size_pt2 = min(max(40_000 / max(len(seen), 1), 0.8), 4.0)
    axes.scatter(xy_m[seen, 0], xy_m[seen, 1], s=size_pt2, c=total[seen] / count[seen, np.newaxis], linewidths=0)
    far_m = float(np.percentile(np.abs(xy_m[seen]), 95)) if len(seen) else 0.0
    reach_m = min(max(far_m, REACH_M[0]), REACH_M[1])
    for radius in RINGS_M:
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=FAINT, linewidth=0.6, linestyle=(0, (4, 4))))
        if radius < reach_m:
            axes.text(0, -radius, f"{radius} m", fontsize=7, family=FONT, color=TEXT, ha="center", va="bottom")
    shorter = min(box.width, box.height)
    across_m, up_m = reach_m * box.width / shorter, reach_m * box.height / shorter
    axes.set(xlim=(-across_m, across_m), ylim=(-up_m, up_m))
