"""Which point similarities are measured from: by its row, by a pixel, or something ahead."""

from __future__ import annotations

import re

import numpy as np

from hilda_schema.errors import UsageError
from hilda_schema.reader import Frame

_AT = re.compile(r"(?P<camera>.+):(?P<u>-?\d+(\.\d+)?),(?P<v>-?\d+(\.\d+)?)")


def chosen_pair(frame: Frame, point: int | None, at: str | None) -> int:
    """Row of the pair whose feature all others are compared with; it is visible.

    Args:
        frame: the frame.
        point: row of a point; the first camera that sees it counts. Without `point` and `at`: the nearest one that
            is not ground in the middle of the first image.
        at: CAMERA:U,V, a pixel of the original image (centres at integers); the visible point nearest to it counts.

    Raises:
        UsageError: both are given, `at` is not of that form, there is no such point or camera, or nothing is seen.
    """
    if point is not None and at is not None:
        raise UsageError("--point and --at both choose a point", "give one of them")
    if point is not None:
        return _of_point(frame, point)
    if at is None:
        return _something_ahead(frame)
    match = _AT.fullmatch(at)
    if match is None:
        raise UsageError(f"--at {at!r} is not a pixel", "write CAMERA:U,V, for example CAM_FRONT:800,450")
    if match["camera"] not in frame.camera_names:
        raise UsageError(f"there is no camera {match['camera']!r}", f"it has {', '.join(frame.camera_names)}")
    return _nearest(frame, frame.camera_names.index(match["camera"]), float(match["u"]), float(match["v"]))


def _of_point(frame: Frame, point: int) -> int:
    rows = np.flatnonzero((frame.pairs.point == point) & frame.pairs.visible)
    if not len(rows):
        raise UsageError(f"frame {frame.key}: no camera sees a point {point}", "choose one by a pixel: --at CAMERA:U,V")
    return int(rows[0])


def _nearest(frame: Frame, camera: int, u: float, v: float) -> int:
    rows = np.flatnonzero((frame.pairs.camera == camera) & frame.pairs.visible)
    if not len(rows):
        name = frame.camera_names[camera]
        raise UsageError(f"frame {frame.key}: camera {name} sees no point", "choose another camera or frame")
    return int(rows[np.linalg.norm(frame.pairs.uv_px[rows] - (u, v), axis=1).argmin()])


def _something_ahead(frame: Frame) -> int:
    """The nearest point that stands on the road in the middle of the first image that has one, else any point there."""
    visible = np.flatnonzero(frame.pairs.visible)
    if not len(visible):
        raise UsageError(f"frame {frame.key}: no camera sees any point", "choose another frame")
    rows = visible[frame.pairs.camera[visible] == frame.pairs.camera[visible[0]]]
    width, _ = frame.camera_sizes_px[frame.camera_names[frame.pairs.camera[rows[0]]]]
    good = np.abs(frame.pairs.uv_px[rows, 0] - (width - 1) / 2) < width / 4
    if frame.cache.manifest.recipe.store_points:
        good &= ~frame.points.ground[frame.pairs.point[rows]]
    if good.any():
        rows = rows[good]
    return int(rows[frame.pairs.depth_m[rows].argmin()])
