"""What a part's content must satisfy before a byte of it is written."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hilda_schema.content import FrameContent, PartContent
from hilda_schema.errors import CacheError
from hilda_schema.features import present_cameras
from hilda_schema.layout import LIDAR, POINT_COLUMNS
from hilda_schema.manifest import SAFE_NAME, Recipe


def check_content(recipe: Recipe, content: PartContent) -> None:
    """Refuse content that is not what the recipe says, or not finite.

    Raises:
        CacheError: naming frame, camera and layer.
    """
    if not re.fullmatch(SAFE_NAME, content.part):
        raise CacheError(f"{content.part!r} cannot be the id of a part: it is not a plain file name")
    if tuple(content.camera_sizes_px) != recipe.dataset.cameras:
        raise CacheError(f"part {content.part} has other cameras than the recipe")
    _check_frames(recipe, content)
    columns = [column.name for column in POINT_COLUMNS if column.optional]
    with_points = [frame for frame in content.frames if len(frame.xyz_m)]
    for frame in content.frames:
        _check_points(frame)
        _check_pairs(content, frame)
        _check_features(recipe, content, frame)
    for name in columns:
        if len({getattr(frame, name) is None for frame in with_points}) > 1:
            raise CacheError(f"part {content.part}: some frames have {name} and some have not")


def _check_frames(recipe: Recipe, content: PartContent) -> None:
    if any(layer.reduction for teacher in recipe.teachers for layer in teacher.layers):
        raise CacheError("features of fewer channels are made from a store that has all", "use hilda-cache reencode")
    if not content.frames:
        raise CacheError(f"part {content.part} has no frames")
    for before, after in pairwise(content.frames):
        if after.stamp_ns < before.stamp_ns or str(after.key) == str(before.key):
            raise CacheError(f"frame {after.key} does not come after frame {before.key}")
    if len({str(frame.key) for frame in content.frames}) != len(content.frames):
        raise CacheError(f"part {content.part} names a frame twice")
    if strange := {name for frame in content.frames for name in frame.absent} - {LIDAR, *recipe.dataset.cameras}:
        raise CacheError(f"part {content.part}: {sorted(strange)[0]!r} is absent, but no camera of the store")
    for frame in content.frames:
        if frame.key.scene != content.scene:
            raise CacheError(f"frame {frame.key} is not of scene {content.scene}")


def _check_points(frame: FrameContent) -> None:
    N = len(frame.xyz_m)
    for column in POINT_COLUMNS:
        values = getattr(frame, column.name)
        if values is None and column.optional:
            continue
        _check_array(frame, column.name, values, column.dtype, (N, column.width) if column.width else (N,))
    for name in ("xyz_m", "intensity"):
        if not np.isfinite(getattr(frame, name)).all():
            raise CacheError(f"frame {frame.key}: {name} has values that are not finite")
    for name in ("world_SE3_lidar", "world_SE3_ego"):
        pose = np.asarray(getattr(frame, name))
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise CacheError(f"frame {frame.key}: {name} is not a finite 4 x 4 pose")


def _check_pairs(content: PartContent, frame: FrameContent) -> None:
    pairs, P = frame.pairs, len(frame.pairs)
    _check_array(frame, "pairs.point", pairs.point, "uint32", (P,))
    _check_array(frame, "pairs.camera", pairs.camera, "uint8", (P,))
    _check_array(frame, "pairs.uv_px", pairs.uv_px, "float64", (P, 2))
    _check_array(frame, "pairs.depth_m", pairs.depth_m, "float32", (P,))
    _check_array(frame, "pairs.visible", pairs.visible, "bool", (P,))
    if not P:
        return
    if int(pairs.point.max()) >= len(frame.xyz_m) or int(pairs.camera.max()) >= len(content.camera_sizes_px):
        raise CacheError(f"frame {frame.key}: a pair names a point or a camera that is not there")
    if not present_cameras(content, frame)[pairs.camera].all():
        raise CacheError(f"frame {frame.key}: a pair names a camera that is absent")
    order = pairs.camera.astype(np.int64) << 32 | pairs.point
    if (np.diff(order) <= 0).any():
        raise CacheError(f"frame {frame.key}: pairs are not sorted by camera, then by point, each once")
    sizes_px = np.array(list(content.camera_sizes_px.values()), np.int64)[pairs.camera]
    # Comparisons with NaN are false, so that NaN is refused too.
    if not ((pairs.uv_px >= -0.5) & (pairs.uv_px < sizes_px - 0.5)).all():
        raise CacheError(f"frame {frame.key}: a pair lies outside its image")
    if not ((pairs.depth_m > 0) & (pairs.depth_m < 65504)).all():
        raise CacheError(f"frame {frame.key}: a pair's depth is not between 0 and 65504 m")


def _check_features(recipe: Recipe, content: PartContent, frame: FrameContent) -> None:
    V = len(content.camera_sizes_px)
    expected = {
        (teacher.name, layer.name): (V, layer.height, layer.width, layer.channels)
        for teacher in recipe.teachers
        for layer in teacher.layers
    }
    widths = {teacher.name: (V, teacher.global_width) for teacher in recipe.teachers if teacher.global_width}
    if frame.tokens.keys() != expected.keys() or frame.global_tokens.keys() != widths.keys():
        raise CacheError(f"frame {frame.key}: the features are not those of the recipe's teachers and layers")
    for (teacher, layer), shape in expected.items():
        tokens = frame.tokens[teacher, layer]
        _check_array(frame, f"layer {teacher}/{layer}", tokens, "float32", shape)
        _check_finite(content, frame, tokens, f"{teacher}/{layer}")
    for teacher, width in widths.items():
        vectors = frame.global_tokens[teacher]
        _check_array(frame, f"global token of {teacher}", vectors, "float32", width)
        _check_finite(content, frame, vectors, f"{teacher}/global")


def _check_array(frame: FrameContent, name: str, values: object, dtype: str, shape: tuple[int, ...]) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != dtype or values.shape != shape:
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise CacheError(f"frame {frame.key}: {name} is {found}, not {dtype} {shape}")


def _check_finite(content: PartContent, frame: FrameContent, values: NDArray[np.float32], layer: str) -> None:
    """Features of present cameras are finite, those of absent ones NaN throughout: never zeros for missing data."""
    present = present_cameras(content, frame)
    for name, has_image, rows in zip(content.camera_sizes_px, present, values, strict=True):
        if has_image and not np.isfinite(rows).all():
            raise CacheError(
                f"frame {frame.key}, camera {name}, layer {layer}: the teacher's output is not finite",
                "run this teacher with --precision float32, or leave this layer out",
            )
        if not has_image and not np.isnan(rows).all():
            raise CacheError(f"frame {frame.key}, camera {name}, layer {layer}: features of an absent camera")
