"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

REPO = Path(__file__).resolve().parent.parent


# How long an example takes is the machine's business; what a test may take is bounded by pytest's own limit.
settings.register_profile("no deadlines", deadline=None)
settings.load_profile("no deadlines")


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder with real recorded drives (`data/`) and weights (`weights/`); skips where it is absent."""
    folder = Path(os.environ.get("HILDA_SAMPLE_DATA", REPO.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real sample data at {folder}: set HILDA_SAMPLE_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic nuScenes tree of two scenes with three keyframes, six small images each. Do not change it."""
    from hilda_cache.drives.synthetic import make_drive

    out = tmp_path_factory.mktemp("drives") / "tiny"
    make_drive(out, scenes=2, frames=3, seed=0, image_size=(176, 99))
    return out


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of four blocks with random weights, as a transformers folder."""
    from hilda_cache.teachers.random_vit import save_random_dinov2

    return save_random_dinov2(tmp_path_factory.mktemp("teachers") / "vit", seed=0)


@pytest.fixture(scope="session")
def dask_client() -> Iterator[Any]:
    """A local cluster of two workers, the same as the command line starts, shared by all tests."""
    from hilda_cache.cluster import connect

    with connect(2, None) as client:
        yield client
