"""The arrays of a part: one table of paths, types, dimensions, chunks and units.

Every array is Zarr v3, in one shard, cut into chunks along its first axis only; the bytes of `zarr.json` follow from
the table, so writer, reader and verifier agree by construction.

Legend: F frames, V cameras, N points, P pairs, H x W token grid, C channels, D width of the global token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from hilda_schema.errors import UsageError
from hilda_schema.manifest import LayerInfo, Recipe, TeacherInfo, canonical_json

SHARD_SUFFIX = "c"
"""Name of the first (and only) shard: "c" and one ".0" per dimension; the dot keeps it in its array's folder."""

CHUNK_ROWS = 2**15
CHUNK_BYTES = 2**19
"""Ragged arrays: a chunk is at most so many rows and about so many bytes, since frames begin anywhere in it."""

RESERVED = frozenset({"points", "pairs", "present", "seal.json", "zarr.json"})
"""Folders and files of a part that no teacher may be called."""

LIDAR = "lidar"
"""The name under which a frame's missing sweep is recorded beside its missing cameras."""

# A lost chunk must stand out in every Zarr reader: NaN, or the value at the end of the range.
FILL: dict[str, float | int | bool | str] = {
    "float16": "NaN",
    "float32": "NaN",
    "int8": -128,
    "uint8": 2**8 - 1,
    "uint16": 2**16 - 1,
    "uint32": 2**32 - 1,
    "int32": -(2**31),
    "int64": -1,
    "bool": False,
}


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a part: all that its `zarr.json` says."""

    path: str  # below the part's folder
    dtype: str  # Zarr's name, which is NumPy's
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk_rows: int  # rows of the first axis in one chunk
    unit: str = ""

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of one chunk; the last chunk is padded to it."""
        return (self.chunk_rows, *self.shape[1:])

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.shape[0] // self.chunk_rows)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk without its checksum."""
        return prod(self.chunk_shape) * np.dtype(self.dtype).itemsize

    @property
    def metadata_path(self) -> str:
        """Where the array's `zarr.json` lies."""
        return f"{self.path}/zarr.json"

    @property
    def shard_path(self) -> str:
        """Where the array's bytes lie; there is no such file where the array has no rows."""
        return f"{self.path}/{SHARD_SUFFIX}" + ".0" * len(self.shape)

    @property
    def fill(self) -> np.generic:
        """Value of what was never written."""
        value = FILL[self.dtype]
        filled: np.generic = np.dtype(self.dtype).type(np.nan if value == "NaN" else value)
        return filled

    def metadata(self) -> bytes:
        """The array's `zarr.json`."""
        little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
        checked = [little, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": list(self.chunk_shape),
            "codecs": checked,
            "index_codecs": checked,
            "index_location": "end",
        }
        # One shard holds all chunks; an array without rows still declares room for one.
        shard_shape = [max(self.chunks, 1) * self.chunk_rows, *self.shape[1:]]
        return canonical_json(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(self.shape),
                "data_type": self.dtype,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": FILL[self.dtype],
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "attributes": {"unit": self.unit} if self.unit else {},
                "dimension_names": list(self.dims),
            }
        )


@dataclass(frozen=True, slots=True)
class PartSizes:
    """What the shapes of a part's arrays depend on, beside the recipe."""

    frames: int
    points: int
    pairs: int
    point_columns: frozenset[str]  # the optional ones that are there, of `POINT_COLUMNS`


@dataclass(frozen=True, slots=True)
class PointColumn:
    """One column of the points."""

    name: str
    dtype: str
    unit: str = ""
    width: int = 0  # 0 for one value a point
    optional: bool = False


POINT_COLUMNS = (
    PointColumn("xyz_m", "float32", "m, LiDAR frame", width=3),
    PointColumn("intensity", "float32", "as the dataset has it"),
    PointColumn("ground", "bool"),
    PointColumn("time_offset_ns", "int32", "ns from the frame's stamp", optional=True),
    PointColumn("ring", "uint8", "laser index", optional=True),
    PointColumn("label", "uint16", "the dataset's own class ids", optional=True),
)


def part_arrays(recipe: Recipe, sizes: PartSizes) -> dict[str, ArraySpec]:
    """All arrays of a part, by path.

    Raises:
        UsageError: a teacher's or layer's name cannot be a folder, or is used twice.
    """
    check_names(recipe)
    specs = [*_point_arrays(recipe, sizes), *_pair_arrays(sizes)]
    V = len(recipe.dataset.cameras)
    if V:
        specs.append(ArraySpec("present", "bool", ("frame", "camera"), (sizes.frames, V), sizes.frames))
    for teacher in recipe.teachers:
        for layer in teacher.layers:
            specs += _layer_arrays(recipe, sizes, teacher, layer)
        if teacher.global_width:
            specs.append(
                ArraySpec(
                    f"{teacher.name}/global",
                    "float16",
                    ("frame", "camera", "channel"),
                    (sizes.frames, V, teacher.global_width),
                    chunk_rows=1,
                )
            )
    return {spec.path: spec for spec in specs}


def layer_path(teacher: str, layer: str) -> str:
    """Folder of a layer below its part."""
    return f"{teacher}/layer_{layer}"


def groups_of(arrays: Iterable[str]) -> tuple[str, ...]:
    """Folders above the arrays, the part's own ("") first."""
    found = {""}
    for path in arrays:
        names = path.split("/")[:-1]
        found.update("/".join(names[: k + 1]) for k in range(len(names)))
    return tuple(sorted(found))


def group_metadata(attributes: dict[str, Any] | None = None) -> bytes:
    """A group's `zarr.json`."""
    return canonical_json({"zarr_format": 3, "node_type": "group", "attributes": attributes or {}})


def part_metadata(recipe: Recipe) -> bytes:
    """The part's own `zarr.json`: it carries the recipe, so that a part found alone still says what it is.

    The selection is left out: it says which parts there are, not what is in them.
    """
    content = recipe.model_dump(mode="json", exclude={"selection"})
    return group_metadata(
        {"hilda": {"encoding-type": "teacher-cache-part", "schema": recipe.schema_version, "recipe": content}}
    )


def root_metadata(recipe: Recipe) -> bytes:
    """The store's own `zarr.json`."""
    return group_metadata(
        {
            "hilda": {
                "encoding-type": "teacher-cache",
                "schema": recipe.schema_version,
                "recipe_digest": recipe.digest(),
            }
        }
    )


def check_names(recipe: Recipe) -> None:
    """Refuse teachers and names that no part can hold.

    Raises:
        UsageError: a teacher is called like a folder or file of ours, two teachers or layers share a name, or a
            camera's name is taken.
    """
    teachers = [teacher.name for teacher in recipe.teachers]
    if teachers and not recipe.dataset.cameras:
        raise UsageError("there are teachers but no cameras: a teacher would see nothing")
    for name in teachers:
        if name.casefold() in RESERVED:
            raise UsageError(f"a teacher cannot be called {name!r}: the cache has a folder or file of that name")
    # Compared without case, since some file systems do.
    for kind, names in [("teachers", teachers)] + [
        (f"layers of {teacher.name}", [layer.name for layer in teacher.layers]) for teacher in recipe.teachers
    ]:
        if len({name.casefold() for name in names}) != len(names):
            raise UsageError(f"two {kind} have one name: {', '.join(sorted(names))}")
    if len(set(recipe.dataset.cameras)) != len(recipe.dataset.cameras) or len(recipe.dataset.cameras) > 255:
        raise UsageError("the recipe's cameras are not up to 255 different names")
    if LIDAR in recipe.dataset.cameras:
        raise UsageError(f"a camera cannot be called {LIDAR!r}: absent sweeps are recorded under that name")


def ragged_rows(rows: int, row_bytes: int) -> int:
    """Rows in a chunk of a ragged array."""
    fitting: int = 2 ** max(0, (CHUNK_BYTES // row_bytes).bit_length() - 1)
    return max(1, min(CHUNK_ROWS, fitting, rows))


def _ragged(path: str, dtype: str, dim: str, rows: int, *inner: tuple[str, int], unit: str = "") -> ArraySpec:
    shape = (rows, *(extent for _, extent in inner))
    row_bytes = prod(shape[1:]) * np.dtype(dtype).itemsize
    dims = (dim, *(name for name, _ in inner))
    return ArraySpec(path, dtype, dims, shape, ragged_rows(rows, row_bytes), unit)


def _offsets(path: str, sizes: PartSizes) -> ArraySpec:
    return ArraySpec(
        path, "int64", ("frame_edge",), (sizes.frames + 1,), sizes.frames + 1, "row of the first in a frame"
    )


def _point_arrays(recipe: Recipe, sizes: PartSizes) -> Iterator[ArraySpec]:
    if not recipe.store_points:
        return
    for column in POINT_COLUMNS:
        if not column.optional or column.name in sizes.point_columns:
            inner = [("xyz", column.width)] if column.width else []
            yield _ragged(f"points/{column.name}", column.dtype, "point", sizes.points, *inner, unit=column.unit)
    yield _offsets("points/offset", sizes)


def _pair_arrays(sizes: PartSizes) -> Iterator[ArraySpec]:
    for name, dtype, unit in (
        ("point", "uint32", "row of the point in its frame"),
        ("camera", "uint8", "index of the camera"),
        ("depth_m", "float16", "m along the optical axis"),
        ("visible", "bool", ""),
    ):
        yield _ragged(f"pairs/{name}", dtype, "pair", sizes.pairs, unit=unit)
    yield _ragged("pairs/uv", "uint16", "pair", sizes.pairs, ("uv", 2), unit="1/65536 of the image")
    yield _offsets("pairs/offset", sizes)


def _layer_arrays(recipe: Recipe, sizes: PartSizes, teacher: TeacherInfo, layer: LayerInfo) -> Iterator[ArraySpec]:
    folder, encoding, C = layer_path(teacher.name, layer.name), recipe.encoding, layer.channels
    if encoding.kind == "point":
        yield _ragged(f"{folder}/features", encoding.dtype, "pair", sizes.pairs, ("channel", C))
    else:
        shape = (sizes.frames, len(recipe.dataset.cameras), layer.height, layer.width)
        dims = ("frame", "camera", "row", "column")
        yield ArraySpec(f"{folder}/tokens", encoding.dtype, (*dims, "channel"), (*shape, C), chunk_rows=1)
    if encoding.dtype == "int8":
        if encoding.kind == "point":
            yield _ragged(f"{folder}/scale", "float16", "pair", sizes.pairs)
        else:
            yield ArraySpec(f"{folder}/scale", "float16", dims, shape, chunk_rows=1)
        for name in ("channel_mean", "channel_scale"):
            yield ArraySpec(f"{folder}/{name}", "float32", ("channel",), (C,), C)
    if layer.reduction:
        yield ArraySpec(f"{folder}/basis", "float32", ("channel", "model_channel"), (C, layer.reduction.channels), C)
