"""What the values of a sealed frame must satisfy, beyond being the bytes that were sealed.

The writer has refused anything else; this is for stores that another program wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_schema.encoding import INT8_ABSENT
from hilda_schema.layout import layer_path
from hilda_schema.manifest import Recipe, ReductionInfo
from hilda_schema.part import OpenPart
from hilda_schema.reduction import basis_sha256, is_orthonormal


def check_values(part: OpenPart, recipe: Recipe, row: int) -> Iterator[tuple[str, str]]:
    """Check one frame.

    Yields:
        (path of the array, what is wrong with it).

    Raises:
        CacheCorrupt: the bytes are not those that were sealed.
    """
    frame = part.frames[row]
    present = np.array([name not in frame.absent for name in recipe.dataset.cameras], np.bool_)
    if recipe.dataset.cameras and not np.array_equal(part.read_whole("present")[row], present):
        yield "present", "is not what the seal says of absent cameras"
    if recipe.store_points:
        start, stop = part.edges("points", row)
        for name in ("xyz_m", "intensity"):
            if not np.isfinite(part.read_rows(f"points/{name}", start, stop, row)).all():
                yield f"points/{name}", "has values that are not finite"
    yield from _check_pairs(part, present, row)
    for teacher in recipe.teachers:
        for layer in teacher.layers:
            yield from _check_layer(part, recipe, layer_path(teacher.name, layer.name), present, row)
            if layer.reduction and row == 0:
                yield from _check_basis(part, f"{layer_path(teacher.name, layer.name)}/basis", layer.reduction)
        if teacher.global_width:
            path = f"{teacher.name}/global"
            vectors = part.read_rows(path, row, row + 1, row)[0]
            if (np.isfinite(vectors).all(axis=1) != present).any() or (~np.isnan(vectors)).any(axis=1)[~present].any():
                yield path, "is not finite for exactly the cameras that are present"


def _check_pairs(part: OpenPart, present: NDArray[np.bool_], row: int) -> Iterator[tuple[str, str]]:
    frame, (start, stop) = part.frames[row], part.edges("pairs", row)
    point, camera, depth_m = (
        part.read_rows(f"pairs/{name}", start, stop, row) for name in ("point", "camera", "depth_m")
    )
    if not len(point):
        if frame.points_seen:
            yield "pairs/point", f"is empty, the seal says {frame.points_seen} points are seen"
        return
    if int(point.max()) >= frame.points:
        yield "pairs/point", f"names point {int(point.max())} of {frame.points}"
    if int(camera.max()) >= len(present) or not present[camera].all():
        yield "pairs/camera", "names a camera that is not there"
    if (np.diff(camera.astype(np.int64) << 32 | point) <= 0).any():
        yield "pairs/point", "is not sorted by camera, then by point"
    if len(np.unique(point)) != frame.points_seen:
        yield "pairs/point", f"does not name the {frame.points_seen} points that the seal says are seen"
    if not (np.isfinite(depth_m) & (depth_m > 0)).all():
        yield "pairs/depth_m", "is not finite and positive"


def _check_basis(part: OpenPart, path: str, reduction: ReductionInfo) -> Iterator[tuple[str, str]]:
    """All parts of a store have one basis, the one that the recipe names."""
    basis = part.read_whole(path)
    if basis_sha256(basis) != reduction.basis_sha256:
        yield path, "is not the one that the recipe names"
    elif not is_orthonormal(basis):
        yield path, "does not have orthonormal rows"


def _check_layer(
    part: OpenPart, recipe: Recipe, folder: str, present: NDArray[np.bool_], row: int
) -> Iterator[tuple[str, str]]:
    """Features are finite exactly where there is an image."""

    def rows(name: str) -> NDArray[Any]:
        if recipe.encoding.kind == "grid":
            grid: NDArray[Any] = part.read_rows(f"{folder}/{name}", row, row + 1, row)[0]
            return grid
        return part.read_rows(f"{folder}/{name}", *part.edges("pairs", row), row)

    name = "tokens" if recipe.encoding.kind == "grid" else "features"
    values, expected = rows(name), present if recipe.encoding.kind == "grid" else np.True_
    if recipe.encoding.dtype == "int8":
        absent, scale = values == INT8_ABSENT, rows("scale")
        finite = np.isfinite(scale) & (scale >= 0)
        if (~np.isnan(scale) & ~finite).any():
            yield f"{folder}/scale", "is infinite or negative"
        for name_of in ("channel_mean", "channel_scale"):
            if not np.isfinite(part.read_whole(f"{folder}/{name_of}")).all():
                yield f"{folder}/{name_of}", "has values that are not finite"
        finite = finite[..., None] & ~absent
    else:
        finite, absent = np.isfinite(values), np.isnan(values)
    inner = tuple(range(1, values.ndim))
    if (finite.all(axis=inner) != expected).any() or (absent.all(axis=inner) == expected).any():
        yield f"{folder}/{name}", "is not finite for exactly the cameras that are present"
