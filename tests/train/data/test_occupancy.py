"""The occupancy target against its definition in loops, scenes with a known answer, and real sweeps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_train.data.occupancy import occupancy_target
from hilda_train.objectives.bev import FREE, OCCUPIED, UNOBSERVED, BevGrid

GRID = BevGrid(range_m=8.0, cell_m=1.0, z_min_m=-2.0, z_max_m=3.0)


def polar(xy, origin_m, sectors):
    x, y = xy[0] - origin_m[0], xy[1] - origin_m[1]
    return min(int((math.atan2(y, x) / (2 * math.pi) + 0.5) * sectors), sectors - 1), math.hypot(x, y)


def longest_reach(xyz_m, origin_m, grid, min_range_m, sectors):
    """Per sector, how far its longest ray stays within the height band."""
    longest = [0.0] * sectors
    for point in xyz_m:
        sector, distance = polar(point, origin_m, sectors)
        limit_m = min(max(point[2], grid.z_min_m), grid.z_max_m)
        share = 1.0 if limit_m == point[2] else (limit_m - origin_m[2]) / (point[2] - origin_m[2])
        if distance >= min_range_m:
            longest[sector] = max(longest[sector], share * distance)
    return longest


def naive_target(xyz_m, solid, origin_m, grid, min_range_m, sectors):
    """Ray by ray and cell by cell, in float64."""
    xyz_m, origin_m, side = xyz_m.tolist(), origin_m.tolist(), grid.cells
    longest = longest_reach(xyz_m, origin_m, grid, min_range_m, sectors)
    target = np.full((side, side), UNOBSERVED, dtype=np.uint8)
    for row, column in np.ndindex(side, side):
        centre = [(index + 0.5) * grid.cell_m - grid.range_m for index in (row, column)]
        sector, distance = polar(centre, origin_m, sectors)
        if min_range_m <= distance <= longest[sector]:
            target[row, column] = FREE
    for point, is_solid in zip(xyz_m, solid.tolist(), strict=True):
        row, column = (math.floor((value + grid.range_m) / grid.cell_m) for value in point[:2])
        within = 0 <= row < side and 0 <= column < side and grid.z_min_m <= point[2] <= grid.z_max_m
        if is_solid and within and polar(point, origin_m, sectors)[1] >= min_range_m:
            target[row, column] = OCCUPIED
    return target


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), points=st.integers(0, 60), sectors=st.integers(1, 90))
def test_equals_the_definition(seed, points, sectors):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([6.0, 6.0, 3.0], dtype=torch.float64)
    xyz_m = torch.randn(points, 3, generator=generator, dtype=torch.float64) * scale
    solid = torch.rand(points, generator=generator) < 0.6
    origin_m = torch.tensor([0.31, -0.17, 0.43], dtype=torch.float64)
    found = occupancy_target(xyz_m, solid, origin_m, GRID, min_range_m=1.5, sectors=sectors)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), naive_target(xyz_m, solid, origin_m, GRID, 1.5, sectors))


def ring(radius_m: float, height_m: float = 0.0, rays: int = 3600):
    angle = torch.arange(rays) / rays * 2 * math.pi
    return torch.stack((radius_m * angle.cos(), radius_m * angle.sin(), torch.full((rays,), height_m)), dim=1)


def distances(grid: BevGrid):
    return grid.centres_m().norm(dim=2)


def test_a_wall_all_around_is_occupied_free_before_and_unobserved_behind():
    grid = BevGrid(range_m=25.6, cell_m=0.4)
    target = occupancy_target(ring(15.0), torch.ones(3600, dtype=torch.bool), torch.zeros(3), grid)
    distance = distances(grid)
    assert (target[(distance > 2.5) & (distance < 14.5)] == FREE).all()
    assert (target[distance > 15.5] == UNOBSERVED).all()
    assert (target[distance < 2.5] == UNOBSERVED).all()
    occupied = target == OCCUPIED
    assert occupied.sum() > 2 * math.pi * 15.0 / 0.4 * 0.9
    assert ((distance[occupied] - 15.0).abs() < 0.4).all()


def test_a_box_casts_a_shadow_as_wide_as_itself():
    grid = BevGrid(range_m=25.6, cell_m=0.4)
    wall = ring(24.0)
    blocked = (torch.atan2(wall[:, 1], wall[:, 0]).abs() < math.radians(10))[:, None]
    scene = torch.where(blocked, ring(10.0), wall)
    target = occupancy_target(scene, torch.ones(len(scene), dtype=torch.bool), torch.zeros(3), grid)
    x, y = grid.centres_m().unbind(dim=2)
    azimuth, behind = torch.atan2(y, x).abs(), (distances(grid) > 11.0) & (distances(grid) < 23.0)
    assert (target[behind & (azimuth < math.radians(9.5))] == UNOBSERVED).all()
    assert (target[behind & (azimuth > math.radians(10.5))] == FREE).all()


def test_ground_alone_is_free_as_far_as_it_was_seen():
    ground = torch.cat([ring(r, height_m=-1.8) for r in (4.0, 8.0, 12.0)])
    grid = BevGrid(range_m=16.0, cell_m=0.5)
    target = occupancy_target(ground, torch.zeros(len(ground), dtype=torch.bool), torch.zeros(3), grid)
    distance = distances(grid)
    assert not (target == OCCUPIED).any()
    assert (target[(distance > 2.5) & (distance < 12.0)] == FREE).all()
    assert (target[distance > 12.0] == UNOBSERVED).all()


def test_a_ray_that_climbs_out_of_the_band_has_seen_only_what_lies_before():
    grid = BevGrid(range_m=16.0, cell_m=0.5)
    target = occupancy_target(ring(12.0, 6.0), torch.ones(3600, dtype=torch.bool), torch.zeros(3), grid)
    distance = distances(grid)
    assert not (target == OCCUPIED).any()
    assert (target[(distance > 2.5) & (distance < 6.0)] == FREE).all()  # it is 3 m high after 6 of its 12 m
    assert (target[distance > 6.0] == UNOBSERVED).all()


def test_a_sensor_outside_the_band_bears_no_witness_to_free_space():
    """Where its rays enter the band is not followed: such cells stay unobserved rather than be guessed."""
    origin_m = torch.tensor([0.0, 0.0, 10.0])
    target = occupancy_target(ring(6.0), torch.ones(3600, dtype=torch.bool), origin_m, GRID)
    assert set(target.unique().tolist()) == {OCCUPIED, UNOBSERVED}


def test_the_vehicles_own_returns_occupy_nothing():
    target = occupancy_target(ring(1.0), torch.ones(3600, dtype=torch.bool), torch.zeros(3), GRID)
    assert (target == UNOBSERVED).all()


def test_published_target_is_binary():
    target = occupancy_target(ring(5.0), torch.ones(3600, dtype=torch.bool), torch.zeros(3), GRID, unseen_is_free=True)
    assert set(target.unique().tolist()) == {FREE, OCCUPIED}
    partial = occupancy_target(ring(5.0), torch.ones(3600, dtype=torch.bool), torch.zeros(3), GRID)
    assert torch.equal(target == OCCUPIED, partial == OCCUPIED)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_turned_scene_gives_the_turned_map(quarter):
    generator = torch.Generator().manual_seed(0)
    xyz_m = torch.randn(300, 3, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 5.0, 1.0])
    solid = torch.rand(300, generator=generator) < 0.5
    origin_m = torch.tensor([0.7, 0.2, 0.0], dtype=torch.float64)
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    turn = torch.linalg.matrix_power(turn, quarter)
    turned = occupancy_target(xyz_m @ turn.T, solid, turn @ origin_m, GRID, sectors=40)
    straight = occupancy_target(xyz_m, solid, origin_m, GRID, sectors=40)
    # A turn to the left takes x (rows) to y (columns), which is what rot90 does to an array.
    assert torch.equal(turned, torch.rot90(straight, quarter))


def test_real_sweeps_are_free_near_by_and_partly_unseen_far_off(sample_data):
    """nuScenes keyframe; ground by height, which is enough on a flat road."""
    files = sorted((sample_data / "data" / "nuscenes_keyframe").rglob("*LIDAR_TOP*.bin"))
    if not files:
        pytest.skip("no nuScenes sweep among the sample data")
    xyz_m = torch.from_numpy(np.fromfile(files[0], dtype=np.float32).reshape(-1, 5)[:, :3].copy())
    grid = BevGrid()
    solid = xyz_m[:, 2] > -1.5
    target = occupancy_target(xyz_m, solid, torch.zeros(3), grid)
    distance = distances(grid)
    near, far = (distance > 2.5) & (distance < 6.0), distance > 45.0
    assert (target[near] != UNOBSERVED).float().mean() > 0.95
    assert (target[far] == UNOBSERVED).float().mean() > 0.3
    share = (target == OCCUPIED).float().mean().item()
    assert 0.005 < share < 0.15
    cell, inside = grid.cell_of(xyz_m)
    kept = inside & solid & (xyz_m[:, 2] <= 3.0) & (xyz_m[:, :2].norm(dim=1) >= 2.5)
    assert (target.flatten()[cell[kept]] == OCCUPIED).all()
    assert int((target == OCCUPIED).sum()) == len(cell[kept].unique())
