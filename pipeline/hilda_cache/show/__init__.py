"""Pictures of a cache: what a teacher's features look like on the points of one frame.

A wrong calibration, a camera out of step or a broken teacher is invisible in a table of numbers and plain in a
picture: points sit beside the object that they should sit on, or colours ignore what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hilda_schema.durable import write_atomically
from hilda_schema.errors import NotInCache, UsageError
from hilda_schema.reader import Cache, Frame

if TYPE_CHECKING:
    from hilda_cache.show.paint import Paint
    from hilda_cache.show.picture import Scene

Images = Mapping[str, NDArray[np.uint8]]  # camera -> (H, W, 3) RGB


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be shown."""

    index: int = 0  # row of the frame
    teacher: str | None = None  # None: the first
    layers: tuple[str, ...] | None = None  # names or numbers, side by side; None: the last (on a page: all)
    view: str = "cameras"  # one of `paint.VIEWS`
    point: int | None = None  # similarities are measured from this row of the sweep
    at: str | None = None  # or from the point nearest to CAMERA:U,V


def show_frame(cache: Cache, wanted: Wanted, out_png: Path, images: Images | None = None) -> None:
    """Draw one view of a frame. The same cache and images give the same bytes.

    Args:
        cache: an open cache.
        wanted: frame, teacher, layers, view.
        out_png: file to write; its folder must be there.
        images: camera -> (H, W, 3) uint8 RGB, drawn dimmed behind the points; cameras left out have a dark background.

    Raises:
        UsageError: there is no such frame, view or point, matplotlib is not installed, or the file cannot be written.
        NotInCache: there is no such teacher or layer, naming those that there are; or the view needs points and the
            store has none.
        CacheCorrupt: naming file and frame.
    """
    frame = _frame(cache, wanted)
    picture = _drawing(lambda: _picture(frame, wanted, images or {}))
    _write(out_png, picture)


def show_page(cache: Cache, wanted: Wanted, out_html: Path, images: Images | None = None) -> None:
    """Write one HTML page with all views of a frame; it needs neither network nor JavaScript.

    Args and errors are those of `show_frame`; `wanted.view` does not matter, and all layers are shown by default.
    """
    frame = _frame(cache, wanted)

    def make() -> bytes:
        from hilda_cache.show.html import frame_page

        teacher, layers = _all_layers(cache, wanted)
        return frame_page(frame, teacher, layers, wanted, _scene(frame, images or {})).encode()

    _write(out_html, _drawing(make))


def show_recording(cache: Cache, wanted: Wanted, out_rrd: Path, images: Images | None = None) -> None:
    """Write a frame for the Rerun viewer: images with their points, and the sweep, in the colours of each layer.

    Args and errors are those of `show_frame`; `wanted.view` does not matter, and all layers are shown by default.
    """
    frame = _frame(cache, wanted)
    teacher, layers = _all_layers(cache, wanted)
    try:
        from hilda_cache.show.recording import record
    except ModuleNotFoundError as error:
        raise UsageError(f"a recording needs {error.name}", "pip install 'hilda-lidar[rerun]'") from error
    _write(out_rrd, record(frame, teacher, layers, images or {}))


def _drawing(make: Callable[[], bytes]) -> bytes:
    try:
        return make()
    except ModuleNotFoundError as error:
        raise UsageError(f"pictures need {error.name}", "pip install 'hilda-lidar[viz]'") from error


def _write(out: Path, data: bytes) -> None:
    try:
        write_atomically(out, data)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}", "give a file in a folder that exists") from error


def _frame(cache: Cache, wanted: Wanted) -> Frame:
    if not 0 <= wanted.index < len(cache):
        have = f"{cache.url} has {len(cache)} frames, there is no frame {wanted.index}"
        raise UsageError(have, "frames count from 0")
    return cache[wanted.index]


def _all_layers(cache: Cache, wanted: Wanted) -> tuple[str, tuple[str, ...]]:
    """The teacher, and the layers that are asked for, else all that it has.

    Raises:
        NotInCache: there is no such teacher or layer.
    """
    if not cache.teachers:
        raise NotInCache(f"{cache.url} has no teacher to show", "use --view coverage or --view occlusion")
    teacher = wanted.teacher if wanted.teacher is not None else next(iter(cache.teachers))
    if teacher not in cache.teachers:
        cache.layer_info(teacher, "")  # says which there are
    names = wanted.layers or tuple(each.name for each in cache.teachers[teacher].layers)
    return teacher, tuple(cache.layer_info(teacher, name).name for name in names)


def _picture(frame: Frame, wanted: Wanted, images: Images) -> bytes:
    from hilda_cache.show.picture import Picture, draw

    title, paints = _paints(frame, wanted)
    alone = wanted.view in ("bev", "perspective")
    if alone:
        _ = frame.points  # says that there are none
    scene = _scene(frame, images)
    return draw(Picture(title, scene, paints, alone, in_perspective=wanted.view == "perspective"))


def _paints(frame: Frame, wanted: Wanted) -> tuple[str, tuple[Paint, ...]]:
    from hilda_cache.show import paint
    from hilda_cache.show.choose import chosen_pair

    if wanted.view not in paint.VIEWS:
        raise UsageError(f"there is no view {wanted.view!r}", f"use {', '.join(paint.VIEWS)}")
    if wanted.view == "coverage":
        return "How many cameras see each point", (paint.coverage_paint(frame),)
    if wanted.view == "occlusion":
        return "What each camera sees, and what is hidden from it", (paint.occlusion_paint(frame),)
    teacher, layers = _all_layers(frame.cache, wanted)
    layers = layers if wanted.layers else layers[-1:]
    if wanted.view == "similarity":
        chosen = chosen_pair(frame, wanted.point, wanted.at)
        paints = paint.similarity_paints(frame, teacher, layers, chosen)
        return f"Similarity to the marked point: {teacher}", tuple(paints)
    return f"Features on points: {teacher}", tuple(paint.feature_paints(frame, teacher, layers))


def _scene(frame: Frame, images: Images) -> Scene:
    from hilda_cache.show.picture import Scene

    has_points = frame.cache.manifest.recipe.store_points
    xyz_m = frame.points.xyz_m if has_points else None
    ground = frame.points.ground if has_points else None
    return Scene(str(frame.key), frame.camera_sizes_px, frame.pairs, images, xyz_m, ground)
