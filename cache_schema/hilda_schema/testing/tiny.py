"""Small valid caches to test a reader, a trainer or a tool with.

A tiny cache is a toy drive, not noise: a car among fixed posts on a flat road, seen by cameras around it, so that
poses, points and pairs agree with each other. It has what readers stumble over: several scenes and parts, two teachers,
layers of different grids, a camera that is absent in one frame, a frame without points and one without pairs.

Legend: N points, P pairs, V cameras, H x W token grid, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hilda_schema.content import FrameContent, Pairs, PartContent
from hilda_schema.keys import Key
from hilda_schema.manifest import (
    DatasetInfo,
    EncodingInfo,
    LayerInfo,
    ProjectionInfo,
    Recipe,
    SelectionInfo,
    TeacherInfo,
    canonical_json,
    sha256_hex,
)
from hilda_schema.writer import finish_store, start_store, write_part

CAMERAS = ("FRONT", "LEFT", "BACK")
IMAGE_SIZES_PX = {"FRONT": (160, 96), "LEFT": (120, 96), "BACK": (160, 90)}
FOCAL_PX = 80.0
STEP_M = 1.0
STEP_NS = 100_000_000
LIDAR_HEIGHT_M = 1.8


def tiny_recipe(
    kind: Literal["grid", "point"] = "grid",
    dtype: Literal["float16", "int8"] = "float16",
    *,
    store_points: bool = True,
    part_frames: int = 3,
) -> Recipe:
    """The recipe of a tiny cache: teacher "vit" with layers 2 and 4; "cnn" with a pyramid and no global token."""
    vit = _teacher(
        "vit",
        (
            LayerInfo(name="2", channels=8, height=6, width=10),
            LayerInfo(name="4", channels=8, height=6, width=10),
        ),
        global_width=8,
    )
    cnn = _teacher(
        "cnn",
        (
            LayerInfo(name="stage1", channels=4, height=12, width=20),
            LayerInfo(name="stage2", channels=6, height=3, width=5),
        ),
        global_width=0,
    )
    return Recipe(
        dataset=DatasetInfo(name="toy", version="1", cameras=CAMERAS),
        selection=SelectionInfo(),
        teachers=(vit, cnn),
        projection=ProjectionInfo(occlusion="none", ground="z < -1.7 m"),
        encoding=EncodingInfo(kind=kind, dtype=dtype),
        part_frames=part_frames,
        store_points=store_points,
    )


def _teacher(name: str, layers: tuple[LayerInfo, ...], global_width: int) -> TeacherInfo:
    return TeacherInfo(
        name=name,
        source="hilda_schema.testing",
        architecture="random projection of pixel positions",
        weights_sha256=sha256_hex(name.encode()),
        licence="Apache-2.0",
        norm="post",
        image_height_px=96,
        image_width_px=160,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        resize="none",
        precision="float32",
        precision_reason="nothing to gain",
        layers=layers,
        global_width=global_width,
    )


def tiny_cache(
    path: Path,
    *,
    kind: Literal["grid", "point"] = "grid",
    dtype: Literal["float16", "int8"] = "float16",
    store_points: bool = True,
    scenes: int = 2,
    frames: int = 5,
    points: int = 400,
    seed: int = 0,
    finish: bool = True,
) -> Path:
    """Write a small valid cache.

    Args:
        path: folder to make it in.
        kind: "grid" stores token grids, "point" features at the pairs.
        dtype: of the features on disk.
        store_points: whether the store holds points.
        scenes: number of scenes.
        frames: frames in each; the second one lacks camera LEFT, the last scene's last one has no points, and its first
            one no pairs.
        points: LiDAR returns in a frame.
        seed: of everything random.
        finish: False leaves the store partial, with all parts there.

    Returns:
        `path`.
    """
    recipe = tiny_recipe(kind, dtype, store_points=store_points)
    parts = tiny_parts(recipe, scenes=scenes, frames=frames, points=points, seed=seed)
    return write_store(path, recipe, parts, finish=finish)


def write_store(path: Path, recipe: Recipe, parts: Sequence[PartContent], *, finish: bool = True) -> Path:
    """Write parts to a new store.

    Args:
        path: folder to make it in.
        recipe: of all parts.
        parts: their content.
        finish: False leaves the store partial, with all parts there.

    Returns:
        `path`.
    """
    start_store(path, recipe, planned_parts=len(parts))
    entries = [write_part(path, recipe, part) for part in parts]
    if finish:
        finish_store(path, recipe, entries)
    return path


def tiny_parts(
    recipe: Recipe, *, scenes: int = 2, frames: int = 5, points: int = 400, seed: int = 0
) -> list[PartContent]:
    """The content of `tiny_cache`, part by part."""
    parts = []
    for number in range(scenes):
        scene = f"scene-{number:04d}"
        rng = np.random.default_rng([seed, number])
        posts_m = _posts(rng, points)
        contents = [_frame(recipe, scene, k, posts_m, rng) for k in range(frames)]
        if number == scenes - 1:
            contents[0] = replace(contents[0], pairs=_select(contents[0].pairs, np.zeros(0, np.intp)))
            contents[-1] = _without_points(contents[-1])
        starts = range(0, frames, recipe.part_frames)
        parts += [part_of(recipe, scene, tuple(contents[start : start + recipe.part_frames])) for start in starts]
    return parts


def part_of(recipe: Recipe, scene: str, frames: tuple[FrameContent, ...]) -> PartContent:
    """A part of these frames, with an id that follows from recipe and keys."""
    identity = [recipe.digest(), [str(frame.key) for frame in frames]]
    sources = {f"lidar/{frame.key.scene}/{frame.key.frame}.bin": sha256_hex(frame.xyz_m.tobytes()) for frame in frames}
    return PartContent(
        part=sha256_hex(canonical_json(identity))[:32],
        scene=scene,
        camera_sizes_px={name: IMAGE_SIZES_PX[name] for name in recipe.dataset.cameras},
        frames=frames,
        sources=sources,
        calibration_sha256=sha256_hex(b"toy"),
    )


def _posts(rng: np.random.Generator, points: int) -> NDArray[np.float64]:
    """(points, 3) fixed places in the world: half on the road, half on posts beside it."""
    xyz_m = rng.uniform([-20, -15, 0], [40, 15, 0], (points, 3))
    upright = rng.random(points) < 0.5
    xyz_m[upright, 2] = rng.uniform(0.2, 4, upright.sum())
    return xyz_m


def _frame(recipe: Recipe, scene: str, k: int, world_m: NDArray[np.float64], rng: np.random.Generator) -> FrameContent:
    world_SE3_ego = np.eye(4)
    world_SE3_ego[0, 3] = k * STEP_M
    world_SE3_lidar = world_SE3_ego.copy()
    world_SE3_lidar[2, 3] = LIDAR_HEIGHT_M
    xyz_m = (world_m - world_SE3_lidar[:3, 3]).astype(np.float32)
    N = len(xyz_m)
    absent = {"LEFT": "images/LEFT.jpg: no such file"} if k == 1 and "LEFT" in recipe.dataset.cameras else {}
    pairs = _project(xyz_m, [name for name in recipe.dataset.cameras if name not in absent], recipe)
    present = np.array([name not in absent for name in recipe.dataset.cameras], np.bool_)
    tokens = {
        (teacher.name, layer.name): _tokens(layer, present, rng)
        for teacher in recipe.teachers
        for layer in teacher.layers
    }
    vectors = {
        teacher.name: absent_as_nan(rng.normal(size=(len(present), teacher.global_width)), present)
        for teacher in recipe.teachers
        if teacher.global_width
    }
    return FrameContent(
        key=Key("toy", scene, f"{k:06d}"),
        stamp_ns=1_700_000_000_000_000_000 + k * STEP_NS,
        world_SE3_lidar=world_SE3_lidar,
        world_SE3_ego=world_SE3_ego,
        xyz_m=xyz_m,
        intensity=rng.random(N, np.float32),
        ground=xyz_m[:, 2] < 0.1 - LIDAR_HEIGHT_M,
        pairs=pairs,
        tokens=tokens,
        global_tokens=vectors,
        position=k,
        time_offset_ns=np.linspace(-5e7, 5e7, N).astype(np.int32),
        ring=rng.integers(0, 32, N, np.uint8),
        label=np.where(xyz_m[:, 2] < 0.1 - LIDAR_HEIGHT_M, 1, 2).astype(np.uint16),
        absent=absent,
    )


def _project(xyz_m: NDArray[np.float32], cameras: list[str], recipe: Recipe) -> Pairs:
    """Pinholes at the LiDAR's place, looking ahead, left and back."""
    yaw = {"FRONT": 0.0, "LEFT": np.pi / 2, "BACK": np.pi}
    nothing = np.zeros(0)
    found = [Pairs(nothing.astype("u4"), nothing.astype("u1"), np.zeros((0, 2)), nothing.astype("f4"), nothing > 0)]
    for number, name in enumerate(recipe.dataset.cameras):
        if name not in cameras:
            continue
        width, height = IMAGE_SIZES_PX[name]
        c, s = np.cos(yaw[name]), np.sin(yaw[name])
        x, y, z = xyz_m.astype(np.float64).T
        depth, left = c * x + s * y, -s * x + c * y
        with np.errstate(divide="ignore", invalid="ignore"):
            u = (width - 1) / 2 - FOCAL_PX * left / depth
            v = (height - 1) / 2 - FOCAL_PX * z / depth
            inside = (depth > 1) & (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)
        point = np.flatnonzero(inside)
        found.append(
            Pairs(
                point=point.astype(np.uint32),
                camera=np.full(len(point), number, np.uint8),
                uv_px=np.stack([u, v], axis=1)[point],
                depth_m=depth[point].astype(np.float32),
                visible=point % 5 != 0,
            )
        )
    fields = ("point", "camera", "uv_px", "depth_m", "visible")
    return Pairs(**{name: np.concatenate([getattr(pairs, name) for pairs in found]) for name in fields})


def _tokens(layer: LayerInfo, present: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """(V, H, W, C) smooth features with one outlier channel, as vision transformers have them."""
    row, column = np.mgrid[: layer.height, : layer.width] / max(layer.height, layer.width)
    wave = rng.normal(size=(len(present), 3, layer.channels))
    grid = np.einsum("hwk,vkc->vhwc", np.stack([row, column, np.ones_like(row)], axis=-1), wave)
    grid += 0.1 * rng.normal(size=grid.shape)
    grid[..., 0] = 100 + 20 * grid[..., 0]
    return absent_as_nan(grid, present)


def absent_as_nan(values: NDArray[np.floating], present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(V, ...) with NaN for the cameras without an image, as a writer takes features."""
    values[~present] = np.nan
    return values.astype(np.float32)


def _select(pairs: Pairs, rows: NDArray[np.intp]) -> Pairs:
    fields = ("point", "camera", "uv_px", "depth_m", "visible")
    return Pairs(**{name: getattr(pairs, name)[rows] for name in fields})


def _without_points(frame: FrameContent) -> FrameContent:
    columns = ("xyz_m", "intensity", "ground", "time_offset_ns", "ring", "label")
    return replace(
        frame,
        **{name: getattr(frame, name)[:0] for name in columns},
        pairs=_select(frame.pairs, np.zeros(0, np.intp)),
        points_dropped=len(frame.xyz_m),
    )
