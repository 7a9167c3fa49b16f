"""One sweep of a synthetic street."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def street():
    """A 32-beam sensor 1.8 m over a level road, a ring of dark and bright walls 5 to 70 m away. Do not change it."""
    from hilda_train.evaluate.corruptions import Sweep

    rng = np.random.default_rng(0)
    elevation = np.deg2rad(np.linspace(-30.67, 10.67, 32))
    beam, column = (each.ravel() for each in np.meshgrid(np.arange(32), np.arange(360), indexing="ij"))
    azimuth = np.deg2rad(column + 0.5)
    wall_m = rng.uniform(5, 70, 36)[column // 10]
    with np.errstate(divide="ignore"):
        road_m = np.where(elevation < 0, -1.8 / np.sin(elevation), np.inf)[beam]
    range_m = np.minimum(road_m, wall_m / np.cos(elevation[beam]))
    ray = np.stack(
        [np.cos(elevation[beam]) * np.cos(azimuth), np.cos(elevation[beam]) * np.sin(azimuth), np.sin(elevation[beam])]
    )
    return Sweep(
        (ray * range_m).T.astype(np.float32),
        rng.integers(1, 100, len(range_m)).astype(np.float32),
        road_m <= range_m,
        beam.astype(np.uint8),
    )
