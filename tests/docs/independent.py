"""A reader of formats 1.0 and 1.1, written from docs/cache-format.md alone: nothing of ours is imported here.

Slow and small on purpose. Section numbers are those of the page.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

FILL = {"float16": "NaN", "float32": "NaN", "int8": -128, "uint8": 255, "uint16": 65535, "uint32": 4294967295}
FILL |= {"int32": -2147483648, "int64": -1, "bool": False}
POINT_COLUMNS = {
    "xyz_m": ("float32", "m, LiDAR frame"),
    "intensity": ("float32", "as the dataset has it"),
    "ground": ("bool", ""),
    "time_offset_ns": ("int32", "ns from the frame's stamp"),
    "ring": ("uint8", "laser index"),
    "label": ("uint16", "the dataset's own class ids"),
}
OPTIONAL = ("time_offset_ns", "ring", "label")
EDGES = "row of the first in a frame"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC = crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def load(path: Path) -> dict[str, Any]:
    """Section 2."""
    data = path.read_bytes()
    value: dict[str, Any] = json.loads(data)
    assert value["schema_version"] in ("1.0", "1.1")
    content = {name: field for name, field in value.items() if name != "self_sha256"}
    assert canonical(value) == data
    assert sha256(canonical(content)) == value["self_sha256"]
    return value


def signed(content: dict[str, Any]) -> bytes:
    return canonical({**content, "self_sha256": sha256(canonical(content))})


def without_selection(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: field for name, field in recipe.items() if name != "selection"}


def schema_of(recipe: dict[str, Any]) -> str:
    """Section 3."""
    reduced = any("reduction" in layer for teacher in recipe["teachers"] for layer in teacher["layers"])
    return "1.1" if reduced else "1.0"


def recipe_digest(recipe: dict[str, Any]) -> str:
    """Section 3."""
    return sha256(canonical({"schema": schema_of(recipe), "recipe": without_selection(recipe)}))


def group(kind: str = "", schema: str = "1.0", **more: Any) -> bytes:
    """Section 1."""
    attributes = {"hilda": {"encoding-type": kind, "schema": schema, **more}} if kind else {}
    return canonical({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def root_group(recipe: dict[str, Any]) -> bytes:
    return group("teacher-cache", schema_of(recipe), recipe_digest=recipe_digest(recipe))


@dataclass(frozen=True)
class Array:
    """Section 7."""

    path: str
    dtype: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk_rows: int
    unit: str = ""

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return (self.chunk_rows, *self.shape[1:])

    @property
    def chunks(self) -> int:
        return math.ceil(self.shape[0] / self.chunk_rows)

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunk_shape) * np.dtype(self.dtype).itemsize

    @property
    def shard(self) -> str:
        return f"{self.path}/c" + ".0" * len(self.shape)

    @property
    def shard_bytes(self) -> int:
        return self.chunks * (self.chunk_bytes + 4) + 16 * self.chunks + 4

    def metadata(self) -> bytes:
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": self.chunk_shape,
            "codecs": codecs,
            "index_codecs": codecs,
            "index_location": "end",
        }
        outer = [max(self.chunks, 1) * self.chunk_rows, *self.shape[1:]]
        return canonical(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": self.shape,
                "data_type": self.dtype,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": FILL[self.dtype],
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "attributes": {"unit": self.unit} if self.unit else {},
                "dimension_names": self.dims,
            }
        )

    def index(self) -> bytes:
        stride = self.chunk_bytes + 4
        data = b"".join(struct.pack("<QQ", k * stride, stride) for k in range(self.chunks))
        return data + struct.pack("<I", crc32c(data))


def ragged(path: str, dtype: str, dim: str, rows: int, *inner: tuple[str, int], unit: str = "") -> Array:
    shape = (rows, *(extent for _, extent in inner))
    power, row_bytes = 1, math.prod(shape[1:]) * np.dtype(dtype).itemsize
    while 2 * power * row_bytes <= 2**19:
        power *= 2
    return Array(path, dtype, (dim, *(name for name, _ in inner)), shape, max(1, min(power, 2**15, rows)), unit)


def arrays_of(recipe: dict[str, Any], F: int, N: int, P: int, optional: set[str]) -> dict[str, Array]:
    """The table of section 7."""
    found = []
    if recipe["store_points"]:
        for name, (dtype, unit) in POINT_COLUMNS.items():
            if name not in OPTIONAL or name in optional:
                inner = [("xyz", 3)] if name == "xyz_m" else []
                found.append(ragged(f"points/{name}", dtype, "point", N, *inner, unit=unit))
        found.append(Array("points/offset", "int64", ("frame_edge",), (F + 1,), F + 1, EDGES))
    found += [
        ragged("pairs/point", "uint32", "pair", P, unit="row of the point in its frame"),
        ragged("pairs/camera", "uint8", "pair", P, unit="index of the camera"),
        ragged("pairs/uv", "uint16", "pair", P, ("uv", 2), unit="1/65536 of the image"),
        ragged("pairs/depth_m", "float16", "pair", P, unit="m along the optical axis"),
        ragged("pairs/visible", "bool", "pair", P),
        Array("pairs/offset", "int64", ("frame_edge",), (F + 1,), F + 1, EDGES),
    ]
    if V := len(recipe["dataset"]["cameras"]):
        found.append(Array("present", "bool", ("frame", "camera"), (F, V), F))
    for teacher in recipe["teachers"]:
        for layer in teacher["layers"]:
            found += layer_arrays(recipe["encoding"], f"{teacher['name']}/layer_{layer['name']}", layer, F, V, P)
        if D := teacher["global_width"]:
            dims = ("frame", "camera", "channel")
            found.append(Array(f"{teacher['name']}/global", "float16", dims, (F, V, D), 1))
    return {array.path: array for array in found}


def layer_arrays(
    encoding: dict[str, str], folder: str, layer: dict[str, Any], F: int, V: int, P: int
) -> Iterator[Array]:
    dims, shape = ("frame", "camera", "row", "column"), (F, V, layer["height"], layer["width"])
    C, dtype = layer["channels"], encoding["dtype"]
    if encoding["kind"] == "grid":
        yield Array(f"{folder}/tokens", dtype, (*dims, "channel"), (*shape, C), 1)
    else:
        yield ragged(f"{folder}/features", dtype, "pair", P, ("channel", C))
    if dtype == "int8":
        scale = Array(f"{folder}/scale", "float16", dims, shape, 1)
        yield scale if encoding["kind"] == "grid" else ragged(f"{folder}/scale", "float16", "pair", P)
        for name in ("channel_mean", "channel_scale"):
            yield Array(f"{folder}/{name}", "float32", ("channel",), (C,), C)
    if "reduction" in layer:
        yield Array(f"{folder}/basis", "float32", ("channel", "model_channel"), (C, layer["reduction"]["channels"]), C)


def groups_of(recipe: dict[str, Any], arrays: dict[str, Array]) -> dict[str, bytes]:
    """Every group's zarr.json in a part."""
    own = group("teacher-cache-part", schema_of(recipe), recipe=without_selection(recipe))
    above = {parent.as_posix() for path in arrays for parent in Path(path).parents} - {"."}
    return {"zarr.json": own} | {f"{path}/zarr.json": group() for path in above}


def sample(grids: np.ndarray, camera: np.ndarray, xy: np.ndarray, mode: str = "bilinear") -> np.ndarray:
    """Section 9: grids (V, H, W, C) float32, xy (P, 2) -> (P, C)."""
    _, H, W, _ = grids.shape
    gx, gy = np.clip(xy[:, 0] * W - 0.5, 0, W - 1), np.clip(xy[:, 1] * H - 0.5, 0, H - 1)
    if mode == "nearest":
        return grids[camera, np.round(gy).astype(int), np.round(gx).astype(int)]
    j, i = np.floor(gx).astype(int), np.floor(gy).astype(int)
    j1, i1 = np.minimum(j + 1, W - 1), np.minimum(i + 1, H - 1)
    a, b = ((g - k).astype(np.float32)[:, None] for g, k in ((gx, j), (gy, i)))
    one = np.float32(1)
    out = (one - a) * (one - b) * grids[camera, i, j] + a * (one - b) * grids[camera, i, j1]
    out = out + (one - a) * b * grids[camera, i1, j]
    return out + a * b * grids[camera, i1, j1]


def decode_int8(levels: np.ndarray, scale: np.ndarray, mean: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """Section 11."""
    return levels.astype(np.float32) * scale.astype(np.float32)[..., None] * channel + mean


class Reader:
    """A store, opened with the checks of section 16."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.manifest = load(store / "manifest.json")
        self.recipe = self.manifest["recipe"]
        assert self.manifest["state"] == "complete"
        assert self.manifest["schema_version"] == schema_of(self.recipe)
        rows = [[entry["part"], entry["seal_sha256"]] for entry in self.manifest["parts"]]
        assert sha256(canonical(rows)) == self.manifest["root_sha256"]
        assert (store / "zarr.json").read_bytes() == root_group(self.recipe)
        assert sha256(root_group(self.recipe)) == self.manifest["group_sha256"]
        assert (store / "parts/zarr.json").read_bytes() == group()
        assert sha256((store / "frames.parquet").read_bytes()) == self.manifest["frames_sha256"]
        self.frames = pq.read_table(store / "frames.parquet").to_pylist()
        assert len(self.frames) == self.manifest["frames"] == sum(entry["frames"] for entry in self.manifest["parts"])
        self.parts = {entry["part"]: Part(store, self.recipe, entry) for entry in self.manifest["parts"]}

    def frame(self, index: int) -> dict[str, Any]:
        """Everything about one frame."""
        row = self.frames[index]
        part = self.parts[row["part"]]
        assert part.seal["frames"][row["row"]]["key"] == row["key"]
        return {"table": row, **part.frame(row["row"])}


class Part:
    """A part, opened with the checks of first touch."""

    def __init__(self, store: Path, recipe: dict[str, Any], entry: dict[str, Any]) -> None:
        self.folder, self.recipe = store / "parts" / entry["part"], recipe
        assert sha256((self.folder / "seal.json").read_bytes()) == entry["seal_sha256"]
        self.seal = load(self.folder / "seal.json")
        assert self.seal["part"] == entry["part"]
        assert self.seal["recipe_digest"] == recipe_digest(recipe)
        assert [camera["name"] for camera in self.seal["cameras"]] == recipe["dataset"]["cameras"]
        counts = [sum(frame[name] for frame in self.seal["frames"]) for name in ("points", "pairs")]
        optional = {name for name in OPTIONAL if f"points/{name}/zarr.json" in self.seal["files"]}
        self.arrays = arrays_of(recipe, len(self.seal["frames"]), *counts, optional)
        self.check_files()

    def check_files(self) -> None:
        metadata = groups_of(self.recipe, self.arrays)
        metadata |= {f"{path}/zarr.json": array.metadata() for path, array in self.arrays.items()}
        shards = {array.shard: array for array in self.arrays.values() if array.chunks}
        on_disk = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        assert on_disk - {"seal.json"} == self.seal["files"].keys() == metadata.keys() | shards.keys()
        for path, file in self.seal["files"].items():
            assert (self.folder / path).stat().st_size == file["size"]
            if path in metadata:
                assert (self.folder / path).read_bytes() == metadata[path]
                assert sha256(metadata[path]) == file["sha256"]
                assert file["chunk_crc32c"] is None
            else:
                assert file["size"] == shards[path].shard_bytes
                assert len(file["chunk_crc32c"]) == shards[path].chunks

    def rows(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows of an array, chunk by chunk."""
        array = self.arrays[path]
        if start == stop:
            return np.zeros((0, *array.shape[1:]), array.dtype)
        data = (self.folder / array.shard).read_bytes()
        stride, sealed = array.chunk_bytes + 4, self.seal["files"][array.shard]["chunk_crc32c"]
        assert data[array.chunks * stride :] == array.index()
        found = []
        for k in range(start // array.chunk_rows, (stop - 1) // array.chunk_rows + 1):
            chunk, stored = data[k * stride : (k + 1) * stride - 4], data[(k + 1) * stride - 4 : (k + 1) * stride]
            assert crc32c(chunk) == struct.unpack("<I", stored)[0] == sealed[k]
            found.append(np.frombuffer(chunk, array.dtype).reshape(array.chunk_shape))
        first = start // array.chunk_rows * array.chunk_rows
        return np.concatenate(found)[start - first : stop - first]

    def edges(self, name: str, row: int) -> tuple[int, int]:
        """Section 8."""
        frames = self.seal["frames"]
        offset = self.rows(f"{name}/offset", 0, len(frames) + 1)
        assert offset[0] == 0
        assert np.diff(offset).tolist() == [frame[name] for frame in frames]
        return int(offset[row]), int(offset[row + 1])

    def frame(self, row: int) -> dict[str, Any]:
        found: dict[str, Any] = {"seal": self.seal["frames"][row]}
        if self.recipe["store_points"]:
            edges = self.edges("points", row)
            names = [name for name in POINT_COLUMNS if f"points/{name}" in self.arrays]
            found["points"] = {name: self.rows(f"points/{name}", *edges) for name in names}
        edges = self.edges("pairs", row)
        pairs = {name: self.rows(f"pairs/{name}", *edges) for name in ("point", "camera", "depth_m", "visible", "uv")}
        sizes_px = np.array([[camera["width_px"], camera["height_px"]] for camera in self.seal["cameras"]])
        xy = (pairs.pop("uv") + 0.5) / 65536
        found["pairs"] = pairs | {"uv_px": xy * sizes_px[pairs["camera"]] - 0.5}
        found["present"] = self.rows("present", 0, self.arrays["present"].shape[0])[row]
        for teacher in self.recipe["teachers"]:
            for layer in teacher["layers"]:
                key = (teacher["name"], layer["name"])
                folder = f"{key[0]}/layer_{key[1]}"
                found[key] = self.layer(folder, row, edges, pairs["camera"], xy)
                if "reduction" in layer:
                    basis = self.rows(f"{folder}/basis", 0, layer["channels"])
                    assert sha256(basis.tobytes()) == layer["reduction"]["basis_sha256"]
                    found[key]["basis"] = basis
            if teacher["global_width"]:
                found[teacher["name"], "global"] = self.rows(f"{teacher['name']}/global", row, row + 1)[0]
        return found

    def layer(
        self, folder: str, row: int, edges: tuple[int, int], camera: np.ndarray, xy: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Sections 9 and 11."""
        grid = self.recipe["encoding"]["kind"] == "grid"
        span = (row, row + 1) if grid else edges
        values = self.rows(f"{folder}/{'tokens' if grid else 'features'}", *span)
        if self.recipe["encoding"]["dtype"] == "int8":
            C = values.shape[-1]
            mean, scale = (self.rows(f"{folder}/channel_{name}", 0, C) for name in ("mean", "scale"))
            values = decode_int8(values, self.rows(f"{folder}/scale", *span), mean, scale)
        values = values.astype(np.float32)
        if not grid:
            return {"bilinear": values}
        return {"grid": values[0]} | {mode: sample(values[0], camera, xy, mode) for mode in ("bilinear", "nearest")}
