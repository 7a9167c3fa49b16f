"""Where the panels of a picture go: cameras as they sit on the vehicle, the view from above beside or below them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MAX_COLUMNS = 3  # of cameras, and of blocks
PAGE, COLUMN = 7.0, 3.5  # inches: the text and a column of a paper, so that words keep their size in print
GAP = 0.03
HEADER, HEADING, FOOTER = 0.2, 0.18, 0.16
WIDE_ASPECT = 0.5  # height to width of the view from above where it lies below the cameras, and of the perspective


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on the page, in inches from its upper left corner."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Block:
    """The panels of one layer, below its heading."""

    heading: Box
    cameras: dict[str, Box]
    sweep: Box | None  # the sweep from above, or in perspective
    is_wide: bool  # the view from above lies below the cameras


@dataclass(frozen=True, slots=True)
class Page:
    """A page with one block for each layer."""

    width: float
    height: float
    blocks: tuple[Block, ...]


def arrange(cameras: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Row and column of each camera, as it sits on the vehicle where the names tell, else in the given order.

    Names tell where each holds "front", "back" or "rear", "left", "right" or "side", and no two mean the same place:
    then the front row is on top and left is left, as seen by someone looking down who faces forwards.
    """
    places = [_place(name) for name in cameras]
    if None in places or len(set(places)) < len(places):
        return {name: divmod(number, MAX_COLUMNS) for number, name in enumerate(cameras)}
    rows = {row for row, _ in filter(None, places)}
    if {1, 2} <= rows and not {(1, 1), (2, 0), (2, 2)} & set(places):
        rows.discard(2)  # left, back, right fit into one row
    order, columns = sorted(rows), sorted({column for _, column in filter(None, places)})
    return {
        name: (order.index(min(place[0], order[-1])), columns.index(place[1]))
        for name, place in zip(cameras, places, strict=True)
        if place
    }


def _place(name: str) -> tuple[int, int] | None:
    words = set(re.findall("[a-z]+", name.lower()))
    if not words & {"front", "back", "rear", "left", "right", "side"}:
        return None
    row = 0 if "front" in words else 2 if words & {"back", "rear"} else 1
    return row, 0 if "left" in words else 2 if "right" in words else 1


def paginate(sizes_px: Mapping[str, tuple[int, int]], blocks: int, has_points: bool) -> Page:
    """Lay out a page of cameras, and the sweep from above.

    Args:
        sizes_px: camera -> (width, height) of its images.
        blocks: how many layers; several lie side by side, at most three in a row.
        has_points: whether there is a view from above.
    """
    places = arrange([name for name, size in sizes_px.items() if min(size) > 0])
    aspect = _common_aspect(sizes_px)
    return _fill(
        PAGE,
        blocks,
        min(blocks, MAX_COLUMNS),
        lambda left, top, width: _block(left, top, width, places, aspect, has_points, is_wide=blocks > 1),
    )


def paginate_sweeps(blocks: int, *, in_perspective: bool) -> Page:
    """Lay out a page of sweeps alone: from above in squares as wide as a column, or in perspective."""

    def block(left: float, top: float, width: float) -> Block:
        height = width * (WIDE_ASPECT if in_perspective else 1.0)
        return Block(Box(left, top, width, HEADING), {}, Box(left, top + HEADING, width, height), in_perspective)

    across = min(blocks, 2 if in_perspective else MAX_COLUMNS)
    return _fill(COLUMN if blocks == 1 and not in_perspective else PAGE, blocks, across, block)


def _fill(page: float, blocks: int, across: int, block: Callable[[float, float, float], Block]) -> Page:
    """Blocks from left to right and from top to bottom."""
    width = (page - GAP * (across + 1)) / across
    laid: list[Block] = []
    top = HEADER
    for number in range(blocks):
        column = number % across
        if number and column == 0:
            top += _height(laid[-1])
        laid.append(block(GAP + column * (width + GAP), top, width))
    lines = 2 if page == COLUMN else 1
    return Page(page, top + _height(laid[-1]) + lines * FOOTER, tuple(laid))


def _common_aspect(sizes_px: Mapping[str, tuple[int, int]]) -> float:
    aspects = Counter(height / width for width, height in sizes_px.values() if min(width, height) > 0)
    return aspects.most_common(1)[0][0] if aspects else WIDE_ASPECT


def _height(block: Block) -> float:
    boxes = [*block.cameras.values(), *([block.sweep] if block.sweep else [])]
    return max((box.top + box.height for box in boxes), default=block.heading.top + HEADING) - block.heading.top + GAP


def _block(
    left: float,
    top: float,
    width: float,
    places: Mapping[str, tuple[int, int]],
    aspect: float,
    has_points: bool,
    *,
    is_wide: bool,
) -> Block:
    """Cameras in a grid of equal cells; beside them a square as high as all rows, or below them a wide rectangle."""
    heading = Box(left, top, width, HEADING)
    top += HEADING
    rows = 1 + max((row for row, _ in places.values()), default=-1)
    columns = 1 + max((column for _, column in places.values()), default=-1)
    beside = has_points and not is_wide
    # width = columns * cell + gaps, and beside them a square of side rows * cell * aspect + gaps
    gaps = GAP * (columns - 1) + (GAP * rows if beside else 0.0)
    cell = (width - gaps) / (columns + (rows * aspect if beside else 0.0)) if columns else 0.0
    boxes = {
        name: Box(left + column * (cell + GAP), top + row * (cell * aspect + GAP), cell, cell * aspect)
        for name, (row, column) in places.items()
    }
    height = rows * cell * aspect + GAP * max(rows - 1, 0)
    if not has_points:
        return Block(heading, boxes, None, is_wide)
    if is_wide:
        sweep = Box(left, top + height + GAP, width, width * WIDE_ASPECT)
    elif rows:
        sweep = Box(left + width - height, top, height, height)
    else:
        sweep = Box(left, top, width, width)
    return Block(heading, boxes, sweep, is_wide)
