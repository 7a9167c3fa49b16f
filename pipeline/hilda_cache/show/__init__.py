"""Pictures of a cache: what a teacher's features look like on the points of one frame.

A wrong calibration, a camera out of step or a broken teacher is invisible in a table of numbers and plain in a
picture: points sit beside the object that they should sit on, or colours ignore what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hilda_schema.colours import pca_colours
from hilda_schema.content import Pairs
from hilda_schema.errors import NotInCache, UsageError
from hilda_schema.reader import Cache, Frame


def show_frame(
    cache: Cache,
    index: int,
    teacher: str | None,
    layers: Sequence[str | int] | None,
    out_png: Path,
    images: Mapping[str, NDArray[np.uint8]] | None = None,
    *,
    hidden: bool = False,
) -> None:
    """Draw a frame's points over each camera and from above, coloured by their features.

    Colours are the first three principal components over all pairs of the frame, so that they mean the same in every
    camera; each layer has its own. The same cache and images give the same bytes.

    Args:
        cache: an open cache.
        index: row of the frame.
        teacher: name of a stored teacher; None for the first.
        layers: names or numbers of stored layers, drawn side by side; None for the last.
        out_png: file to write; its folder must be there.
        images: camera -> (H, W, 3) uint8 RGB, drawn dimmed behind the points; cameras left out have a dark background.
        hidden: also draw points that a nearer surface hides from the camera.

    Raises:
        UsageError: there is no such frame, matplotlib is not installed, or the file cannot be written.
        NotInCache: there is no such teacher or layer, naming those that there are.
        CacheCorrupt: naming file and frame.
    """
    try:
        from hilda_cache.show.picture import Picture, draw
    except ModuleNotFoundError as error:
        raise UsageError(f"pictures need {error.name}", "pip install 'hilda-lidar[viz]'") from error
    if not 0 <= index < len(cache):
        raise UsageError(f"{cache.url} has {len(cache)} frames, there is no frame {index}", "frames count from 0")
    frame = cache[index]
    teacher = teacher if teacher is not None else next(iter(cache.teachers), "")
    names = _layer_names(cache, teacher, layers)
    drawn = np.ones(len(frame.pairs), np.bool_) if hidden else frame.pairs.visible
    picture = Picture(
        title=f"{teacher} / {', '.join(names)}",
        caption=_caption(cache, frame, teacher, names, int(drawn.sum())),
        camera_sizes_px=frame.camera_sizes_px,
        pairs=Pairs(**{each.name: getattr(frame.pairs, each.name)[drawn] for each in fields(Pairs)}),
        colours={name: pca_colours(frame.point_features(teacher, layer=name)[drawn]) for name in names},
        images=images or {},
        xyz_m=_points(frame),
    )
    try:
        out_png.write_bytes(draw(picture))
    except OSError as error:
        raise UsageError(f"cannot write {out_png}: {error.strerror}", "give a file in a folder that exists") from error


def _layer_names(cache: Cache, teacher: str, layers: Sequence[str | int] | None) -> list[str]:
    if layers is None and teacher in cache.teachers:
        layers = [cache.teachers[teacher].layers[-1].name]
    return [cache.layer_info(teacher, layer).name for layer in (layers or [""])]


def _points(frame: Frame) -> NDArray[np.float32] | None:
    """The sweep, None where the store was made without points: the pictures of the cameras need none."""
    try:
        return frame.points.xyz_m
    except NotInCache:
        return None


def _caption(cache: Cache, frame: Frame, teacher: str, layers: list[str], drawn: int) -> str:
    recipe = cache.manifest.recipe
    parts = [
        str(frame.key),
        f"{teacher}/{'+'.join(layers)}",
        f"{recipe.encoding.kind} {recipe.encoding.dtype}",
        f"{drawn:,} of {len(frame.pairs):,} pairs",
        "red, green, blue: principal components 1, 2, 3 (1st to 99th percentile)",
    ]
    return "   |   ".join(parts)
