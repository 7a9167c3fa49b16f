"""From a part's content to the rows of its arrays: positions quantised, features encoded, the loss measured.

Legend: F frames, V cameras, P pairs, H x W token grid, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_schema.content import FrameContent, PartContent
from hilda_schema.encoding import (
    ChannelStatistics,
    ErrorMeter,
    channel_mean,
    decode_float16,
    decode_int8,
    dequantise_uv,
    encode_float16,
    encode_int8,
    normalise_uv,
    quantise_uv,
)
from hilda_schema.errors import CacheError
from hilda_schema.layout import POINT_COLUMNS, layer_path
from hilda_schema.manifest import EncodingError, LayerInfo, Recipe, TeacherInfo
from hilda_schema.sampling import sample_grid

Rows = list[NDArray[Any]]  # one array a frame (or one in all), to be laid end to end


@dataclass(frozen=True, slots=True)
class EncodedArrays:
    """Some arrays of a part, ready to be written."""

    rows: dict[str, Rows]  # array path -> its rows
    layer: str = ""  # "teacher/layer" where these are a layer's
    error: EncodingError | None = None


def encode_part(recipe: Recipe, content: PartContent) -> Iterator[EncodedArrays]:
    """Encode a part, a layer at a time so that only one is held twice.

    Raises:
        CacheError: features beyond what the encoding can hold, naming frame, camera and layer.
    """
    positions = [quantised_uv(content, frame) for frame in content.frames]
    if recipe.store_points:
        yield EncodedArrays(_point_rows(content))
    yield EncodedArrays(_pair_rows(content, positions))
    yield EncodedArrays({"present": [np.array([present_cameras(content, frame) for frame in content.frames])]})
    for teacher in recipe.teachers:
        for layer in teacher.layers:
            yield _encode_layer(recipe, content, teacher, layer, positions)
        if teacher.global_width:
            yield EncodedArrays({f"{teacher.name}/global": _global_rows(content, teacher.name)})


def present_cameras(content: PartContent, frame: FrameContent) -> NDArray[np.bool_]:
    """(V,) which cameras' images this frame has."""
    return np.array([name not in frame.absent for name in content.camera_sizes_px], np.bool_)


def quantised_uv(content: PartContent, frame: FrameContent) -> NDArray[np.uint16]:
    """(P, 2) the pairs' positions as they are stored."""
    sizes_px = np.array(list(content.camera_sizes_px.values()), np.int64).reshape(-1, 2)
    return quantise_uv(normalise_uv(frame.pairs.uv_px, sizes_px[frame.pairs.camera]))


def _offsets(counts: list[int]) -> Rows:
    return [np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)]


def _point_rows(content: PartContent) -> dict[str, Rows]:
    rows = {
        f"points/{column.name}": [
            values for frame in content.frames if (values := getattr(frame, column.name)) is not None
        ]
        for column in POINT_COLUMNS
    }
    return rows | {"points/offset": _offsets([len(frame.xyz_m) for frame in content.frames])}


def _pair_rows(content: PartContent, positions: list[NDArray[np.uint16]]) -> dict[str, Rows]:
    pairs = [frame.pairs for frame in content.frames]
    return {
        "pairs/point": [each.point for each in pairs],
        "pairs/camera": [each.camera for each in pairs],
        "pairs/depth_m": [encode_float16(each.depth_m) for each in pairs],
        "pairs/visible": [each.visible for each in pairs],
        "pairs/uv": list(positions),
        "pairs/offset": _offsets([len(each) for each in pairs]),
    }


def _global_rows(content: PartContent, teacher: str) -> Rows:
    rows: Rows = []
    for frame in content.frames:
        encoded = encode_float16(frame.global_tokens[teacher])
        _refuse_infinite(encoded, content, frame, f"{teacher}/global")
        rows.append(encoded[None])
    return rows


def _encode_layer(
    recipe: Recipe, content: PartContent, teacher: TeacherInfo, layer: LayerInfo, positions: list[NDArray[np.uint16]]
) -> EncodedArrays:
    """Encode one layer of all frames and measure what was lost."""
    folder, name = layer_path(teacher.name, layer.name), f"{teacher.name}/{layer.name}"
    grids = [frame.tokens[teacher.name, layer.name] for frame in content.frames]
    point = recipe.encoding.kind == "point"
    originals = (
        [
            sample_grid(g, f.pairs.camera, dequantise_uv(q))
            for g, f, q in zip(grids, content.frames, positions, strict=True)
        ]
        if point
        else grids
    )
    measured = [_finite_rows(values) for values in originals]
    int8 = recipe.encoding.dtype == "int8"
    statistics = ChannelStatistics.of(measured, layer.channels) if int8 else None
    meter = ErrorMeter(statistics.mean if statistics else channel_mean(measured, layer.channels))
    features: Rows = []
    scales: Rows = []
    for frame, values, rows in zip(content.frames, originals, measured, strict=True):
        stored: NDArray[Any]
        if statistics:
            stored, scale = encode_int8(values, statistics)
            _refuse_infinite(scale, content, frame, name)
            scales.append(scale if point else scale[None])
            decoded = decode_int8(stored, scale, statistics)
        else:
            stored = encode_float16(values)
            _refuse_infinite(stored, content, frame, name)
            decoded = decode_float16(stored)
        meter.add(rows, _finite_rows(decoded))
        features.append(stored if point else stored[None])
    arrays = {f"{folder}/{'features' if point else 'tokens'}": features}
    if statistics:
        arrays[f"{folder}/scale"] = scales
        arrays[f"{folder}/channel_mean"] = [statistics.mean]
        arrays[f"{folder}/channel_scale"] = [statistics.scale]
    return EncodedArrays(arrays, name, meter.result())


def _finite_rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, C) rows of present cameras; absent ones are NaN throughout."""
    rows = values.reshape(-1, values.shape[-1])
    present = ~np.isnan(rows[:, 0])
    return rows if present.all() else rows[present]


def _refuse_infinite(encoded: NDArray[np.float16], content: PartContent, frame: FrameContent, layer: str) -> None:
    infinite = np.isinf(encoded)
    if not infinite.any():
        return
    first = int(np.argwhere(infinite)[0][0])
    camera = first if encoded.ndim > 1 and len(encoded) == len(content.camera_sizes_px) else None
    name = list(content.camera_sizes_px)[camera] if camera is not None else "some camera"
    raise CacheError(
        f"frame {frame.key}, camera {name}, layer {layer}: a feature is too large for float16 (65504)",
        "store this teacher as int8, or leave this layer out",
    )
