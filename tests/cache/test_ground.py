"""Ground against labels on real sweeps, and against the known answer on constructed terrain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_cache.drives import open_drive
from hilda_cache.ground import GROUND, LAYER_M, SECTORS, ground_mask

PANDASET_GROUND = range(6, 13)  # ground, road, markings, sidewalk, driveway
PANDASET_UNCLEAR = range(5)  # unlabelled, smoke, exhaust, spray, reflection
KITTI_GROUND = (40, 44, 48, 49, 60, 72)  # road, parking, sidewalk, other ground, lane marking, terrain
KITTI_UNCLEAR = (0, 1)  # unlabelled, outlier


def precision_recall(said: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    return float(truth[said].mean()), float(said[truth].mean())


# --- real sweeps, judged by labels that the method never sees ------------------------------------------------------


@pytest.mark.parametrize(("lidar", "frame"), [("pandar64", 0), ("pandar64", 10), ("pandargt", 5)])
def test_pandaset(sample_data: Path, lidar: str, frame: int) -> None:
    drive = open_drive("pandaset", sample_data / "data" / "pandaset", lidar=lidar)
    points = drive.read(drive.frames("002")[frame]).points
    clear = ~np.isin(points.label, PANDASET_UNCLEAR)
    truth = np.isin(points.label, PANDASET_GROUND)[clear]
    precision, recall = precision_recall(ground_mask(points.xyz_m)[clear], truth)
    assert precision > 0.93
    assert recall > 0.95


def test_semantickitti(sample_data: Path) -> None:
    drive = open_drive("semantickitti", sample_data / "data" / "semantickitti")
    points = drive.read(drive.frames(drive.scenes()[0])[0]).points
    clear = ~np.isin(points.label, KITTI_UNCLEAR)
    truth = np.isin(points.label, KITTI_GROUND)[clear]
    precision, recall = precision_recall(ground_mask(points.xyz_m)[clear], truth)
    assert precision > 0.95
    assert recall > 0.97


def test_argoverse2(sample_data: Path) -> None:
    root = sample_data / "data" / "argoverse2"
    labels = pyarrow.feather.read_table(next(root.rglob("flow_labels.feather")))
    drive = open_drive("argoverse2", root)
    scene = next(root.rglob("flow_labels.feather")).parent.name
    points = drive.read(drive.frames(scene)[0]).points
    truth = labels["is_ground_0"].to_numpy()  # within 0.3 m of the map: kerbs, grass and tyres too, hence the recall
    precision, recall = precision_recall(ground_mask(points.xyz_m), truth)
    assert precision > 0.97
    assert recall > 0.85


# --- constructed terrain --------------------------------------------------------------------------------------------

Terrain = Callable[[np.ndarray, np.ndarray], np.ndarray]


def scene(terrain: Terrain, mount_m: float = 1.8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rings on the terrain, and cars, people and walls on it.

    Returns:
        (N, 3) float32 points and (N,) height above the terrain.
    """
    rng = np.random.default_rng(seed)
    ranges = mount_m / np.tan(np.radians(np.linspace(25, 2.2, 30)))
    ring, azimuth = np.meshgrid(ranges, np.linspace(-np.pi, np.pi, 720, endpoint=False))
    flat = np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), np.zeros_like(ring)], -1).reshape(-1, 3)
    objects = []
    for _ in range(40):
        reach, bearing = rng.uniform(5, 40), rng.uniform(-np.pi, np.pi)
        size = rng.choice([[4.5, 1.8, 1.5], [0.5, 0.5, 1.7], [12.0, 0.3, 5.0]])
        body = rng.uniform(-0.5, 0.5, (300, 3)) * size
        centre = np.array([reach * np.cos(bearing), reach * np.sin(bearing), 0.1 + size[2] / 2])
        objects.append(body + centre)
    points = np.concatenate([flat, *objects])
    points = points[np.hypot(points[:, 0], points[:, 1]) > 3]
    height = points[:, 2].copy()
    points[:, 2] += terrain(points[:, 0], points[:, 1]) - mount_m + rng.normal(0, 0.015, len(points))
    return points.astype(np.float32), height


TERRAINS: dict[str, Terrain] = {
    "flat": lambda x, y: 0 * x,
    "hillside": lambda x, y: 0.16 * x - 0.12 * y,  # 20 % steep
    "valley": lambda x, y: 0.1 * np.maximum(0, np.abs(x) - 12),
    "crest": lambda x, y: -0.1 * np.maximum(0, np.abs(y) - 12),
    "waves": lambda x, y: 0.8 * np.sin(2 * np.pi * x / 60),
    "kerb": lambda x, y: np.where(np.abs(y) > 6, 0.15, 0.0),
    "ramp": lambda x, y: 0.15 * np.clip(x - 10, 0, 20),
}


@pytest.mark.parametrize("terrain", TERRAINS)
def test_follows_the_terrain(terrain: str) -> None:
    points, height = scene(TERRAINS[terrain])
    found = ground_mask(points)
    assert found[height == 0].mean() > 0.97
    assert found[height > LAYER_M + 0.1].mean() < 0.006


@pytest.mark.parametrize("mount_m", [0.4, 1.2, 3.4])
def test_asks_for_no_mounting_height(mount_m: float) -> None:
    points, height = scene(TERRAINS["flat"], 1.8)
    points[:, 2] += 1.8 - mount_m
    found = ground_mask(points)
    assert found[height == 0].mean() > 0.99
    assert found[height > LAYER_M + 0.1].mean() < 0.006


def test_reflections_below_the_road_do_not_pull_it_down() -> None:
    points, height = scene(TERRAINS["flat"])
    mirrored = points[height > 1][::7] * np.float32([1, 1, -1]) - np.float32([0, 0, 2 * 1.8])
    found = ground_mask(np.concatenate([points, mirrored]))
    assert found[: len(points)][height == 0].mean() > 0.97
    assert not found[len(points) :].any()


def test_a_truck_beside_the_vehicle_does_not_lift_the_ground_behind_it() -> None:
    points, height = scene(TERRAINS["flat"])
    x, y, _ = points.T
    bearing, reach = np.degrees(np.arctan2(y, x)), np.hypot(x, y)
    shadow = (np.abs(bearing) < 20) & (reach > 6) & (reach < 25)
    seen, standing = points[~shadow], height[~shadow]
    roof = np.stack(np.meshgrid(np.arange(5, 12, 0.2), np.arange(-2, 2, 0.2), [1.2]), -1).reshape(-1, 3)
    found = ground_mask(np.concatenate([seen, roof.astype(np.float32)]))
    assert found[: len(seen)][standing == 0].mean() > 0.97
    assert not found[len(seen) :].any()


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((0, 3)),
        np.zeros((1, 3)),
        np.full((500, 3), 7.0),
        [[100.0, 100.0, -2.0]] * 50,
        np.random.default_rng(0).uniform(-1, 1, (500, 3)),
    ],
)
def test_where_no_road_is_seen_there_is_no_ground(points: np.ndarray) -> None:
    found = ground_mask(np.array(points, np.float32))
    assert found.dtype == np.bool_
    assert found.shape == (len(points),)
    assert not found.any()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_of_points_does_not_matter(seed: int) -> None:
    points, _ = scene(TERRAINS["waves"])
    shuffle = np.random.default_rng(seed).permutation(len(points))
    np.testing.assert_array_equal(ground_mask(points[shuffle]), ground_mask(points)[shuffle])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 200), st.floats(0, 20), st.integers(0, 300))
def test_any_finite_cloud_has_an_answer(seed: int, reach_m: float, height_m: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    cloud = rng.uniform(-1, 1, (count, 3)) * [reach_m, reach_m, height_m]
    found = ground_mask(cloud.astype(np.float32))
    assert found.shape == (count,)
    assert not found[np.hypot(cloud[:, 0], cloud[:, 1]) > 121].any()


def test_the_rule_is_stated_with_its_parameters() -> None:
    assert f"{SECTORS} sectors" in GROUND
    assert f"layer {LAYER_M} m" in GROUND
