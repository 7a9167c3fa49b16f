"""Stores to reshape, and what a reader gets of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilda_schema import open_cache
from hilda_schema.reader import Frame
from hilda_schema.testing import tiny_cache


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def _tree(store: Path) -> dict[str, str]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _arrays(frame: Frame) -> Iterator[tuple[str, Any]]:
    """Everything that a reader gives of a frame, by name; what belongs to a camera under the camera's name."""
    cache, recipe = frame.cache, frame.cache.manifest.recipe
    yield "stamp", frame.stamp_ns
    yield "poses", np.stack([frame.world_SE3_lidar, frame.world_SE3_ego])
    if recipe.store_points:
        for column in frame.point_columns if len(frame.points) else ("xyz_m", "intensity", "ground"):
            yield f"points/{column}", getattr(frame.points, column)
    pairs = frame.pairs
    for number, camera in enumerate(frame.camera_names):
        mine = pairs.camera == number
        yield f"{camera}/absent", frame.absent.get(camera)
        yield f"{camera}/size", frame.camera_sizes_px[camera]
        for name in ("point", "uv_px", "depth_m", "visible"):
            yield f"{camera}/{name}", getattr(pairs, name)[mine]
        for teacher, info in cache.teachers.items():
            if info.global_width:
                yield f"{camera}/{teacher}/global", frame.global_tokens(teacher)[number]
            for layer in info.layers:
                yield f"{camera}/{teacher}/{layer.name}", frame.point_features(teacher, layer.name)[mine]
                if recipe.encoding.kind == "grid":
                    yield f"{camera}/{teacher}/{layer.name}/grid", frame.token_grid(teacher, layer.name)[number]


def _digests(store: Path) -> dict[str, dict[str, str]]:
    def digest(value: Any) -> str:
        data = value.dtype.str.encode() + value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        return hashlib.sha256(data).hexdigest()

    return {str(frame.key): {name: digest(value) for name, value in _arrays(frame)} for frame in open_cache(store)}


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """tree(folder): every file below it and its hash."""
    return _tree


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, dict[str, str]]]:
    """digests(store): frame -> what a reader gives of it -> hash of its bits."""
    return _digests


@pytest.fixture(scope="session")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of five frames in parts of three, as token grids. Do not change it."""
    return tiny_cache(tmp_path_factory.mktemp("stores") / "grids", scenes=3, points=60)


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory, grids: Path) -> dict[str, Path]:
    """Every encoding -> two scenes of five frames in parts of three. Do not change them."""
    folder = tmp_path_factory.mktemp("encodings")
    return {
        f"{kind}-{dtype}": tiny_cache(folder / f"{kind}-{dtype}", kind=kind, dtype=dtype, points=60)
        for kind in ("grid", "point")
        for dtype in ("float16", "int8")
    }
