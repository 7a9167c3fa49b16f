"""The reader's check: small stores, each with what must be read from it (`damage.py` has those to refuse).

What must be read is taken from the arrays as zarr-python opens them and from the formulas of docs/cache-format.md,
not from our reader. A reader passes where positions and stored values are equal, and samples agree to rounding.

Legend: N points, P pairs, V cameras, H x W token grid, C channels, D width of a global token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hilda_schema.layout import POINT_COLUMNS
from hilda_schema.testing.tiny import tiny_parts, tiny_recipe, write_store

LayerName = tuple[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class ExpectedFrame:
    """What a reader must get from one frame."""

    key: str
    stamp_ns: int
    world_SE3_lidar: NDArray[np.float64]  # (4, 4)
    world_SE3_ego: NDArray[np.float64]  # (4, 4)
    cameras: tuple[str, ...]
    present: NDArray[np.bool_]  # (V,)
    absent: dict[str, str]  # camera, or "lidar" -> reason
    points: dict[str, NDArray[Any]] | None  # column -> (N,) or (N, 3); None where points are not stored
    pairs: dict[str, NDArray[Any]]  # point, camera, visible, depth_m (P,), uv_px (P, 2)
    grids: dict[LayerName, NDArray[np.float32]]  # (V, H, W, C), NaN where absent; empty for kind "point"
    bilinear: dict[LayerName, NDArray[np.float32]]  # (P, C)
    nearest: dict[LayerName, NDArray[np.float32]]  # (P, C); empty for kind "point"
    global_tokens: dict[str, NDArray[np.float32]]  # teacher -> (V, D), NaN where absent


@dataclass(frozen=True, slots=True)
class ReaderCase:
    """A store, and what must be read from it, frame by frame in reading order."""

    name: str
    store: Path
    frames: tuple[ExpectedFrame, ...]


def reader_cases(folder: Path) -> Iterator[ReaderCase]:
    """Small stores of every kind that the format knows, each with what must be read from it.

    Args:
        folder: where the stores are made, one folder each.

    Yields:
        One case a store: the four encodings, no points, no teachers, no cameras, several chunks an array.
    """
    kinds: tuple[Literal["grid", "point"], ...] = ("grid", "point")
    dtypes: tuple[Literal["float16", "int8"], ...] = ("float16", "int8")
    recipes = {f"{kind}-{dtype}": tiny_recipe(kind, dtype) for kind in kinds for dtype in dtypes}
    plain = tiny_recipe()
    bare = plain.dataset.model_copy(update={"cameras": ()})
    recipes |= {
        "no-points": tiny_recipe(store_points=False),
        "no-teachers": plain.model_copy(update={"teachers": ()}),
        "no-cameras": plain.model_copy(update={"dataset": bare, "teachers": ()}),
        "many-chunks": plain.model_copy(update={"teachers": plain.teachers[:1]}),
    }
    for name, recipe in recipes.items():
        many = name == "many-chunks"
        parts = tiny_parts(recipe, scenes=1 if many else 2, frames=4, points=12_000 if many else 60)
        store = write_store(folder / name, recipe, parts)
        yield ReaderCase(name, store, tuple(expected_frames(store)))


def expected_frames(store: Path) -> Iterator[ExpectedFrame]:
    """What must be read from a store that is known to be sound."""
    manifest = json.loads((store / "manifest.json").read_bytes())
    for entry in manifest["parts"]:
        seal = json.loads((store / "parts" / entry["part"] / "seal.json").read_bytes())
        arrays = _arrays(store / "parts" / entry["part"])
        for row, frame in enumerate(seal["frames"]):
            yield _expected(manifest["recipe"], seal, frame, arrays, row)


def _arrays(part: Path) -> dict[str, NDArray[Any]]:
    import zarr

    found: dict[str, NDArray[Any]] = {}
    for path in sorted(part.rglob("zarr.json")):
        if json.loads(path.read_bytes())["node_type"] == "array":
            name = path.parent.relative_to(part).as_posix()
            found[name] = np.asarray(zarr.open_array(path.parent, mode="r")[...])
    return found


def _expected(
    recipe: dict[str, Any], seal: dict[str, Any], frame: dict[str, Any], arrays: dict[str, NDArray[Any]], row: int
) -> ExpectedFrame:
    def rows(ragged: str, name: str) -> NDArray[Any]:
        offset = arrays[f"{ragged}/offset"]
        values: NDArray[Any] = arrays[name][offset[row] : offset[row + 1]]
        return values

    cameras = tuple(camera["name"] for camera in seal["cameras"])
    sizes_px = np.array([(camera["width_px"], camera["height_px"]) for camera in seal["cameras"]]).reshape(-1, 2)
    columns = [each.name for each in POINT_COLUMNS if f"points/{each.name}" in arrays]
    pairs = {name: rows("pairs", f"pairs/{name}") for name in ("point", "camera", "depth_m", "visible")}
    uv = (rows("pairs", "pairs/uv").astype(np.float64) + 0.5) / 65536
    layers = _Layers(recipe, arrays, row, lambda name: rows("pairs", name), pairs["camera"], uv)
    return ExpectedFrame(
        key=frame["key"],
        stamp_ns=frame["stamp_ns"],
        world_SE3_lidar=np.array(frame["world_SE3_lidar"]).reshape(4, 4),
        world_SE3_ego=np.array(frame["world_SE3_ego"]).reshape(4, 4),
        cameras=cameras,
        present=np.array([name not in frame["absent"] for name in cameras], np.bool_),
        absent=frame["absent"],
        points={name: rows("points", f"points/{name}") for name in columns} if recipe["store_points"] else None,
        pairs=pairs | {"uv_px": uv * sizes_px[pairs["camera"]] - 0.5},
        grids=layers.grids(),
        bilinear=layers.sampled("bilinear"),
        nearest=layers.sampled("nearest"),
        global_tokens={
            teacher["name"]: arrays[f"{teacher['name']}/global"][row].astype(np.float32)
            for teacher in recipe["teachers"]
            if teacher["global_width"]
        },
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Layers:
    """The features of one frame, decoded and sampled by the page's formulas."""

    recipe: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    row: int
    pair_rows: Callable[[str], NDArray[Any]]
    camera: NDArray[np.uint8]
    uv: NDArray[np.float64]

    def _names(self) -> list[LayerName]:
        return [(each["name"], layer["name"]) for each in self.recipe["teachers"] for layer in each["layers"]]

    def _decoded(self, layer: LayerName, name: str) -> NDArray[np.float32]:
        """Section 11."""
        folder = f"{layer[0]}/layer_{layer[1]}"
        grid = name == "tokens"
        values = self.arrays[f"{folder}/{name}"][self.row] if grid else self.pair_rows(f"{folder}/{name}")
        found: NDArray[np.float32] = values.astype(np.float32)
        if self.recipe["encoding"]["dtype"] == "int8":
            scale = self.arrays[f"{folder}/scale"][self.row] if grid else self.pair_rows(f"{folder}/scale")
            found = found * scale.astype(np.float32)[..., None] * self.arrays[f"{folder}/channel_scale"]
            found = found + self.arrays[f"{folder}/channel_mean"]
        return found

    def grids(self) -> dict[LayerName, NDArray[np.float32]]:
        if self.recipe["encoding"]["kind"] != "grid":
            return {}
        return {layer: self._decoded(layer, "tokens") for layer in self._names()}

    def sampled(self, mode: str) -> dict[LayerName, NDArray[np.float32]]:
        if self.recipe["encoding"]["kind"] == "grid":
            return {layer: self._sample(grid, mode) for layer, grid in self.grids().items()}
        return {layer: self._decoded(layer, "features") for layer in self._names()} if mode == "bilinear" else {}

    def _sample(self, grid: NDArray[np.float32], mode: str) -> NDArray[np.float32]:
        """Section 9."""
        H, W = grid.shape[1:3]
        gx = np.clip(self.uv[:, 0] * W - 0.5, 0, W - 1)
        gy = np.clip(self.uv[:, 1] * H - 0.5, 0, H - 1)
        if mode == "nearest":
            nearest: NDArray[np.float32] = grid[self.camera, np.rint(gy).astype(int), np.rint(gx).astype(int)]
            return nearest
        j, i = gx.astype(int), gy.astype(int)
        a, b = ((gx - j)[:, None], (gy - i)[:, None])
        j1, i1 = np.minimum(j + 1, W - 1), np.minimum(i + 1, H - 1)
        token = {(y, x): grid[self.camera, (i, i1)[y], (j, j1)[x]].astype(np.float64) for y in (0, 1) for x in (0, 1)}
        upper = (1 - a) * (1 - b) * token[0, 0] + a * (1 - b) * token[0, 1]
        both: NDArray[np.float64] = upper + (1 - a) * b * token[1, 0] + a * b * token[1, 1]
        return both.astype(np.float32)
