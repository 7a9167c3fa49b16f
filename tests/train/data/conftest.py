"""Small caches for the data path: toy drives whose vehicle turns, of any dataset, teachers, grids and encoding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hilda_schema.testing import tiny_parts, tiny_recipe
from hilda_schema.writer import finish_store, start_store, write_part


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Products this small take longer to share out than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def turned(content, k):
    """The same frame seen by a LiDAR that has turned and tilted: its points and its pose change together."""
    a, b = 0.4 * k, 0.03 * k
    yaw = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    pose = content.world_SE3_lidar.copy()
    pose[:3, :3] = yaw @ tilt
    xyz_m = (content.xyz_m.astype(np.float64) @ pose[:3, :3]).astype(np.float32)
    return replace(content, world_SE3_lidar=pose, xyz_m=xyz_m)


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory):
    """Write a cache and return its folder as text.

    Options: kind, dtype; dataset and its options; cameras; teachers by name; grid (height, width) of every layer;
    scenes, frames, points, seed. As in `hilda_schema.testing.tiny_cache`, the second frame lacks a camera, the last
    scene's first frame has no pairs and its last one no points.
    """

    def make(
        kind="grid",
        dtype="float16",
        *,
        dataset="toy",
        options=(),
        cameras=("FRONT", "LEFT", "BACK"),
        teachers=("vit", "cnn"),
        grid=None,
        scenes=2,
        frames=5,
        points=300,
        seed=0,
    ):
        recipe = tiny_recipe(kind, dtype)
        chosen = [teacher for teacher in recipe.teachers if teacher.name in teachers]
        if grid is not None:
            size = dict(zip(("height", "width"), grid, strict=True))
            chosen = [
                teacher.model_copy(update={"layers": tuple(layer.model_copy(update=size) for layer in teacher.layers)})
                for teacher in chosen
            ]
        info = recipe.dataset.model_copy(update={"name": dataset, "options": dict(options), "cameras": cameras})
        recipe = recipe.model_copy(update={"dataset": info, "teachers": tuple(chosen)})
        path = tmp_path_factory.mktemp("caches") / "cache"
        parts = [
            replace(part, frames=tuple(turned(frame, frame.position) for frame in part.frames))
            for part in tiny_parts(recipe, scenes=scenes, frames=frames, points=points, seed=seed)
        ]
        start_store(path, recipe, planned_parts=len(parts))
        finish_store(path, recipe, [write_part(path, recipe, part) for part in parts])
        return str(path)

    return make


@pytest.fixture(scope="session")
def toy(make_cache):
    """A grid cache of two scenes with five frames each. Do not change it."""
    return make_cache()
