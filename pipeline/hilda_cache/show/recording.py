"""A frame as a recording for the Rerun viewer. Needs rerun-sdk, which is large: an extra of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import rerun as rr
from numpy.typing import NDArray

from hilda_cache.show.paint import Paint, feature_paints
from hilda_schema.reader import Frame

APPLICATION = "hilda-cache show"
POINT_M, POINT_PX = 0.06, 2.0


def record(frame: Frame, teacher: str, layers: Sequence[str], images: Mapping[str, NDArray[np.uint8]]) -> bytes:
    """One frame at its time stamp: `cameras/NAME/image` and `cameras/NAME/LAYER` in pixels, `sweep/LAYER` in metres.

    Colours are those of the pictures. Unlike these, two recordings of a frame differ in bytes: the viewer's format
    numbers its chunks at random.

    Args:
        frame: the frame.
        teacher: a stored teacher.
        layers: names of its stored layers.
        images: camera -> (H, W, 3) RGB.

    Returns:
        The bytes of an .rrd file.
    """
    recording = rr.RecordingStream(APPLICATION, recording_id=str(frame.key))
    stream = recording.binary_stream()
    recording.set_time("stamp", timestamp=np.datetime64(frame.stamp_ns, "ns"))
    for camera, image in images.items():
        recording.log(f"cameras/{camera}/image", rr.Image(image).compress())
    has_points = frame.cache.manifest.recipe.store_points
    for layer, paint in zip(layers, feature_paints(frame, teacher, layers), strict=True):
        for number, camera in enumerate(frame.camera_names):
            mine = paint.pairs.camera == number
            dots = rr.Points2D(paint.pairs.uv_px[mine] + 0.5, colors=_bytes(paint.pair_rgb[mine]), radii=-POINT_PX / 2)
            recording.log(f"cameras/{camera}/{layer}", dots)
        if has_points:
            recording.log(f"sweep/{layer}", _sweep(frame, paint))
    data = stream.read()
    assert data is not None
    return bytes(data)


def _sweep(frame: Frame, paint: Paint) -> rr.Points3D:
    seen = np.isfinite(paint.point_rgb).all(axis=1)
    return rr.Points3D(frame.points.xyz_m[seen], colors=_bytes(paint.point_rgb[seen]), radii=POINT_M)


def _bytes(rgb: NDArray[np.float64]) -> NDArray[np.uint8]:
    values: NDArray[np.uint8] = np.rint(255 * rgb).astype(np.uint8)
    return values
