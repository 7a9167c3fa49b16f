"""From a part's content to the rows of its arrays: positions quantised, features encoded, the loss measured.

Legend: F frames, V cameras, P pairs, H x W token grid, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from hilda_schema.manifest import EncodingError, EncodingInfo, LayerInfo, Recipe, TeacherInfo
from hilda_schema.reduction import lift_channels, reduce_channels
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
        _refuse_infinite(encoded, str(frame.key), tuple(content.camera_sizes_px), f"{teacher}/global")
        rows.append(encoded[None])
    return rows


def _encode_layer(
    recipe: Recipe, content: PartContent, teacher: TeacherInfo, layer: LayerInfo, positions: list[NDArray[np.uint16]]
) -> EncodedArrays:
    """Encode one layer of all frames and measure what was lost."""
    values = [frame.tokens[teacher.name, layer.name] for frame in content.frames]
    if recipe.encoding.kind == "point":
        values = [
            sample_grid(grid, frame.pairs.camera, dequantise_uv(q))
            for grid, frame, q in zip(values, content.frames, positions, strict=True)
        ]
    keys = [str(frame.key) for frame in content.frames]
    return encode_features(recipe.encoding, teacher.name, layer, values, keys, tuple(content.camera_sizes_px))


def encode_features(
    encoding: EncodingInfo,
    teacher: str,
    layer: LayerInfo,
    values: Sequence[NDArray[np.float32]],
    keys: Sequence[str],
    cameras: tuple[str, ...],
    basis: NDArray[np.float32] | None = None,
) -> EncodedArrays:
    """Encode one layer of all frames of a part and measure what was lost.

    Args:
        encoding: what lies on disk.
        teacher: the layer's teacher.
        layer: which layer.
        values: what is encoded, one array a frame: (V, H, W, C) for token grids, NaN for absent cameras; (P, C) for
            features at the pairs.
        keys: the frames' keys, for messages.
        cameras: the store's, for messages.
        basis: (channels, C) where `values` have the model's C channels and the layer has fewer.

    Raises:
        CacheError: a feature is beyond what the encoding can hold, naming frame, camera and layer.
    """
    folder, name, point = layer_path(teacher, layer.name), f"{teacher}/{layer.name}", encoding.kind == "point"
    originals = [_finite_rows(each) for each in values]
    values = [reduce_channels(each, basis) for each in values] if basis is not None else values
    measured = [_finite_rows(each) for each in values]
    statistics = ChannelStatistics.of(measured, layer.channels) if encoding.dtype == "int8" else None
    if statistics and basis is None:
        meter = ErrorMeter(statistics.mean)
    else:
        meter = ErrorMeter(channel_mean(originals, layer.channels if basis is None else basis.shape[1]))
    features: Rows = []
    scales: Rows = []
    for key, each, original in zip(keys, values, originals, strict=True):
        stored: NDArray[Any]
        if statistics:
            stored, scale = encode_int8(each, statistics)
            _refuse_infinite(scale, key, cameras, name)
            scales.append(scale if point else scale[None])
            decoded = decode_int8(stored, scale, statistics)
        else:
            stored = encode_float16(each)
            _refuse_infinite(stored, key, cameras, name)
            decoded = decode_float16(stored)
        found = _finite_rows(decoded)
        meter.add(original, found if basis is None else lift_channels(found, basis))
        features.append(stored if point else stored[None])
    arrays = {f"{folder}/{'features' if point else 'tokens'}": features}
    if statistics:
        arrays[f"{folder}/scale"] = scales
        arrays[f"{folder}/channel_mean"] = [statistics.mean]
        arrays[f"{folder}/channel_scale"] = [statistics.scale]
    if basis is not None:
        arrays[f"{folder}/basis"] = [basis]
    return EncodedArrays(arrays, name, meter.result())


def _finite_rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, C) rows of present cameras; absent ones are NaN throughout."""
    rows = values.reshape(-1, values.shape[-1])
    present = ~np.isnan(rows[:, 0])
    return rows if present.all() else rows[present]


def _refuse_infinite(encoded: NDArray[np.float16], key: str, cameras: tuple[str, ...], layer: str) -> None:
    infinite = np.isinf(encoded)
    if not infinite.any():
        return
    first = int(np.argwhere(infinite)[0][0])
    name = cameras[first] if encoded.ndim > 1 and len(encoded) == len(cameras) else "some camera"
    raise CacheError(
        f"frame {key}, camera {name}, layer {layer}: a feature is too large for float16 (65504)",
        "store this teacher as int8, or leave this layer out",
    )
