"""Composes a picture of one frame from panels, as a PNG file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hilda_cache.show import panels
from hilda_cache.show.layout import COLUMN, FOOTER, HEADING, Block, Box, Page, paginate, paginate_sweeps
from hilda_cache.show.paint import Paint, some_pairs
from hilda_cache.show.viewpoint import ground_height_m
from hilda_schema.content import Pairs
from hilda_schema.style import LABEL, PAPER, SOFT
from hilda_schema.viewpoint import forward_quarter, turn_about

DPI = 300  # a page is 2100 pixels wide
MARGIN = 0.06  # inches, left and right of words


@dataclass(frozen=True, eq=False)
class Scene:
    """What all pictures of a frame have in common. Legend: N points."""

    key: str
    camera_sizes_px: Mapping[str, tuple[int, int]]  # in the order of `pairs.camera`; (0, 0) for one that is absent
    pairs: Pairs  # all of the frame
    images: Mapping[str, NDArray[np.uint8]]  # camera -> (H, W, 3) RGB
    xyz_m: NDArray[np.float32] | None  # (N, 3) LiDAR frame; None: the store has no points
    ground: NDArray[np.bool_] | None  # (N,)

    @cached_property
    def quarters(self) -> int:
        """Quarter turns from the LiDAR's x axis to forwards."""
        assert self.xyz_m is not None
        return forward_quarter(list(self.camera_sizes_px), self.pairs, self.xyz_m)

    def turned_m(self, *, forwards_up: bool) -> NDArray[np.float32]:
        """(N, 2) the sweep as a map, forwards to the right or up."""
        assert self.xyz_m is not None
        return turn_about(self.xyz_m, int(forwards_up) - self.quarters)

    @cached_property
    def over_ground_m(self) -> NDArray[np.float32]:
        """(N, 3) x forwards, y left, z over the road around the vehicle."""
        assert self.xyz_m is not None
        assert self.ground is not None
        height_m = self.xyz_m[:, 2] - np.float32(ground_height_m(self.xyz_m, self.ground))
        return np.concatenate([self.turned_m(forwards_up=False), height_m[:, np.newaxis]], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """All that is drawn on one page."""

    title: str
    scene: Scene
    paints: tuple[Paint, ...]  # one block of panels each
    sweep_alone: bool = False
    in_perspective: bool = False  # the sweep, where it is alone

    @property
    def page(self) -> Page:
        """Where everything goes."""
        if self.sweep_alone:
            return paginate_sweeps(len(self.paints), in_perspective=self.in_perspective)
        return paginate(self.scene.camera_sizes_px, len(self.paints), self.scene.xyz_m is not None)


def draw(picture: Picture) -> bytes:
    """Draw.

    Returns:
        The bytes of a PNG file, without date or program in it.
    """
    page = picture.page
    figure = new_figure(page.width, page.height)
    panels.write(figure, MARGIN, 0.11, picture.title, 7.5, weight="bold")
    for block, paint in zip(page.blocks, picture.paints, strict=True):
        _draw_block(figure, block, paint, picture)
    note = "; ".join(dict.fromkeys(paint.note for paint in picture.paints))
    last = page.height - 0.07
    if page.width == COLUMN:
        panels.write(figure, MARGIN, last - FOOTER, picture.scene.key, panels.TINY, color=SOFT)
        panels.write(figure, MARGIN, last, note, panels.TINY, color=SOFT)
    else:
        panels.write(figure, MARGIN, last, picture.scene.key, panels.TINY, color=SOFT)
        panels.write(figure, page.width - MARGIN, last, note, panels.TINY, color=SOFT, ha="right")
    return saved(figure)


def new_figure(width: float, height: float, dpi: float = DPI) -> Figure:
    """A blank page; inches."""
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def saved(figure: Figure, kind: str = "png", **options: Any) -> bytes:
    """The bytes of a picture file."""
    stream = io.BytesIO()
    if kind == "png":
        options["metadata"] = {"Software": None}
    figure.savefig(stream, format=kind, dpi=figure.dpi, facecolor=figure.get_facecolor(), **options)
    return stream.getvalue()


def _draw_block(figure: Figure, block: Block, paint: Paint, picture: Picture) -> None:
    panels.write(figure, block.heading.left + 0.03, block.heading.top + HEADING / 2, paint.heading, 6.5)
    panels.draw_legend(figure, block.heading, paint.legend)
    for name, box in block.cameras.items():
        draw_camera_panel(panels.panel(figure, box, name), box, picture.scene, paint, name)
    if block.sweep is None:
        return
    if picture.in_perspective:
        draw_perspective_panel(panels.panel(figure, block.sweep), block.sweep, picture.scene, paint)
    else:
        words = f"from above, forwards {'right' if block.is_wide else 'up'}"
        axes = panels.panel(figure, block.sweep, words)
        draw_map_panel(axes, block.sweep, picture.scene, paint, forwards_up=not block.is_wide)


def draw_camera_panel(axes: Axes, box: Box, scene: Scene, paint: Paint, name: str, *, behind: bool = True) -> None:
    """One camera's points; `behind`: over its image, where there is one."""
    mine = np.flatnonzero(paint.pairs.camera == list(scene.camera_sizes_px).index(name))
    image = scene.images.get(name) if behind else None
    pairs = some_pairs(paint.pairs, mine)
    size_px, rgb = scene.camera_sizes_px[name], paint.pair_rgb[mine]
    panels.draw_camera(axes, box, size_px, image, pairs.uv_px, pairs.depth_m, rgb, pairs.visible)
    for row in paint.mark.pairs if paint.mark else ():
        if row in mine:
            panels.draw_mark(axes, *paint.pairs.uv_px[row])


def draw_map_panel(axes: Axes, box: Box, scene: Scene, paint: Paint, *, forwards_up: bool) -> None:
    """The sweep from above."""
    assert scene.xyz_m is not None
    xy_m = scene.turned_m(forwards_up=forwards_up)
    panels.draw_from_above(axes, box, xy_m, scene.xyz_m[:, 2], paint.point_rgb)
    axes.plot(0, 0, marker="^" if forwards_up else ">", markersize=4, color=LABEL, markeredgewidth=0, zorder=5)
    if paint.mark:
        panels.draw_mark(axes, *xy_m[paint.mark.point])


def draw_perspective_panel(axes: Axes, box: Box, scene: Scene, paint: Paint) -> None:
    """The sweep from behind and above the vehicle."""
    panels.draw_in_perspective(axes, box, scene.over_ground_m, paint.point_rgb)
