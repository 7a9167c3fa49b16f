"""Clips and batches: one augmentation for a clip, poses that fit it, pairs renumbered, errors with a name."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilda_schema.errors import CacheCorrupt, CacheNotFound, HildaError, TrainError
from hilda_schema.reader import open_cache
from hilda_train.data import batches
from hilda_train.data.augment import Augmentation, AugmentOptions, draw
from hilda_train.data.batches import ClipDataset, SampleOptions, collate, join
from hilda_train.data.clips import Clip, clips_of
from hilda_train.data.occupancy import occupancy_target
from hilda_train.data.scans import ScanOptions
from hilda_train.data.voxelise import VoxelGrid
from hilda_train.objectives.bev import OCCUPIED, UNOBSERVED, BevGrid

BEV = BevGrid(range_m=16.0, cell_m=1.0, z_min_m=-2.0, z_max_m=4.0)
SCAN = ScanOptions(VoxelGrid("cartesian", (0.5, 0.5, 0.5)), intensity={"toy": (0.5, 0.3), "other": (0.1, 2.0)})
PLAIN = SampleOptions(SCAN, AugmentOptions(0, 0, 0), BEV, unseen_is_free=False, history=True, seed=0)
AUGMENTED = replace(PLAIN, augment=AugmentOptions(dropout=0.3))
QUARTER_TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def dataset_of(*urls, options=PLAIN, gap_s=0.1):
    clips = [clip for k, url in enumerate(urls) for clip in clips_of(open_cache(url).frames, k, gap_s)]
    return ClipDataset(urls, clips, options)


def homogeneous(matrix):
    return np.block([[matrix, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])


def moved(pose, xyz_m):
    """Points through a pose, one by one, in float64."""
    return np.array([[sum(pose[i, j] * p[j] for j in range(3)) + pose[i, 3] for i in range(3)] for p in xyz_m])


def augmentation_of(frame, scan):
    """The linear map between a frame's points and a scan of all of them, measured."""
    solution, residual, *_ = np.linalg.lstsq(
        frame.points.xyz_m.astype(np.float64), scan.points.xyz_m.numpy().astype(np.float64), rcond=None
    )
    assert residual.max() < 1e-6
    return solution.T


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), row=st.integers(1, 3))
def test_one_draw_for_all_frames_of_a_clip(toy, seed, row):
    """Measured from the points of t-1 and t0, and checked in the pose between them and in the target of t1."""
    cache = open_cache(toy)
    sample = dataset_of(toy, options=replace(PLAIN, augment=AugmentOptions(), seed=seed))[0, 0, row]
    before, now, after = cache[row - 1], cache[row], cache[row + 1]
    matrix = augmentation_of(now, sample.current)
    np.testing.assert_allclose(augmentation_of(before, sample.previous), matrix, atol=1e-5)
    scale = np.linalg.norm(matrix, axis=0)
    assert scale == pytest.approx(scale[0], abs=1e-5)
    assert 0.9 - 1e-5 <= scale[0] <= 1.1 + 1e-5

    t0_SE3_before = np.linalg.inv(now.world_SE3_lidar) @ before.world_SE3_lidar
    expected = moved(homogeneous(matrix) @ t0_SE3_before, before.points.xyz_m.astype(np.float64))
    pose = sample.previous.t0_SE3_scan.double().numpy()
    np.testing.assert_allclose(moved(pose, sample.previous.points.xyz_m.double().numpy()), expected, atol=1e-4)
    np.testing.assert_allclose(sample.current.t0_SE3_scan.numpy(), np.eye(4), atol=1e-6)

    pose = homogeneous(matrix) @ np.linalg.inv(now.world_SE3_lidar) @ after.world_SE3_lidar
    target = occupancy_target(
        torch.from_numpy(moved(pose, after.points.xyz_m.astype(np.float64))),
        torch.from_numpy(~after.points.ground),
        torch.from_numpy(pose[:3, 3]),
        BEV,
    )
    # A measured map is not the drawn one to the last bit: a point on a cell's edge may change sides.
    assert (target != sample.target).float().mean() < 0.005
    assert (sample.target == OCCUPIED).sum() > 10


def test_the_same_place_has_the_same_coordinates_at_every_time_of_a_clip(toy):
    """The toy world stands still, so t-1 in the frame of t0 is t0, point for point, whatever the augmentation."""
    for seed in range(5):
        sample = dataset_of(toy, options=replace(PLAIN, augment=AugmentOptions(), seed=seed))[0, 0, 2]
        pose = sample.previous.t0_SE3_scan.double().numpy()
        aligned = moved(pose, sample.previous.points.xyz_m.double().numpy())
        np.testing.assert_allclose(aligned, sample.current.points.xyz_m.double().numpy(), atol=1e-4)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_target_of_a_turned_clip_is_the_turned_target(toy, monkeypatch, turns):
    straight = dataset_of(toy)[0, 0, 2]
    turn = np.linalg.matrix_power(QUARTER_TURN, turns)
    monkeypatch.setattr(batches, "draw", lambda options, rng: Augmentation(turn, 0.0))
    turned = dataset_of(toy)[0, 0, 2]
    # A turn to the left takes x (rows) to y (columns), which is what rot90 does to an array.
    assert torch.equal(turned.target, torch.rot90(straight.target, turns))
    assert not torch.equal(turned.target, straight.target)
    expected = straight.current.points.xyz_m.double().numpy() @ turn.T
    np.testing.assert_allclose(turned.current.points.xyz_m.numpy(), expected, atol=1e-5)


def test_flipping_both_axes_turns_the_target_by_half():
    def target(flip):
        draws = draw(AugmentOptions(rotation_deg=0, flip=flip, scale=0), np.random.default_rng(0))
        return draws.matrix

    assert np.array_equal(target(1.0), np.diag([-1.0, -1.0, 1.0]))
    assert np.array_equal(target(0.0), np.eye(3))


def test_frames_at_the_border_of_a_scene(toy):
    data = dataset_of(toy)
    first, middle, last = (data[0, 0, k] for k in (0, 1, 4))
    assert (first.previous, first.target) == (None, None)
    assert middle.previous is not None
    assert middle.target is not None
    assert last.previous is not None
    assert last.target is None
    next_scene = data[0, 0, 5]
    assert next_scene.previous is None
    batch = join([first, middle, last, next_scene], BEV.cells)
    assert batch.sources == ((0, 0), (0, 0), (0, 1), (0, 3), (0, 4), (0, 5))
    assert batch.scan_sample.tolist() == [0, 1, 1, 2, 2, 3]
    assert batch.histories == ((1, 2),)
    assert torch.equal(batch.target, middle.target[None])
    assert batch.target_seeds == (middle.seed,)
    assert batch.seeds == (first.seed, middle.seed, last.seed, next_scene.seed)
    without = join([first, last], BEV.cells)
    assert without.histories == without.target_seeds == ()
    assert without.target.shape == (0, BEV.cells, BEV.cells)


def test_without_an_occupancy_objective_neither_past_nor_future_is_read(toy):
    sample = dataset_of(toy, options=replace(PLAIN, bev=None, history=False))[0, 0, 2]
    assert sample.previous is None
    assert sample.target is None


def test_an_unseen_cell_is_free_only_where_that_is_asked_for(toy):
    partial, binary = (dataset_of(toy, options=replace(PLAIN, unseen_is_free=flag))[0, 0, 2] for flag in (False, True))
    assert (partial.target == UNOBSERVED).any()
    assert not (binary.target == UNOBSERVED).any()
    assert torch.equal(partial.target == OCCUPIED, binary.target == OCCUPIED)


def check_batch(batch, samples):
    """Every number of a batch, against the samples one after the other."""
    scans = [scan for sample in samples for scan in (sample.previous, sample.current) if scan is not None]
    point = pair = group = voxel = 0
    for number, scan in enumerate(scans):
        points, pairs = len(scan.points.xyz_m), len(scan.pair_point)
        assert batch.pair_counts[number] == pairs
        assert batch.group_starts[number] == group
        here = slice(point, point + points)
        assert torch.equal(batch.points.xyz_m[here], scan.points.xyz_m)
        assert torch.equal(batch.points.feats[here], scan.points.feats)
        assert set(batch.points.batch_index[here].tolist()) <= {number}
        for k in range(pairs):
            assert int(batch.pair_point[pair + k]) == point + int(scan.pair_point[k])
            assert int(batch.pair_group[pair + k]) == group + int(scan.pair_camera[k])
            assert int(batch.pair_row[pair + k]) == int(scan.pair_row[k])
            assert torch.equal(batch.uv01[pair + k], scan.uv01[k])
        voxels = scan.points.voxels
        for k in range(points):
            row = int(batch.points.voxels.point_to_voxel[point + k])
            assert row == voxel + int(voxels.point_to_voxel[k])
            own = voxels.coords[int(voxels.point_to_voxel[k])].tolist()
            assert batch.points.voxels.coords[row].tolist() == [number, *own[1:]]
        assert torch.equal(batch.t0_SE3_scan[number], scan.t0_SE3_scan)
        assert batch.sources[number] == scan.source
        point, pair, group, voxel = point + points, pair + pairs, group + scan.cameras, voxel + len(voxels.coords)
    assert (len(batch.points.xyz_m), len(batch.pair_point), batch.group_starts[-1]) == (point, pair, group)
    assert batch.points.batch_size == len(scans) == len(batch.pair_counts)
    assert len(batch.points.voxels.coords) == voxel


def test_joining_renumbers_points_pairs_groups_and_voxels(toy, make_cache):
    """Of two caches with three and two cameras; with a sweep without pairs and one without points among them."""
    other = make_cache(dataset="other", cameras=("BACK", "FRONT"), grid=(4, 7), seed=3)
    data = dataset_of(toy, other, options=AUGMENTED)
    samples = [data[0, k, number] for k, number in enumerate((3, 13, 5, 9, 0))]
    assert [sample.current.source for sample in samples] == [(0, 3), (1, 3), (0, 5), (0, 9), (0, 0)]
    batch = join(samples, BEV.cells)
    assert batch.keys == tuple(sample.key for sample in samples)
    assert batch.group_starts == (0, 3, 6, 8, 10, 13, 16, 19, 22)
    assert batch.pair_counts.count(0) == 2
    check_batch(batch, samples)


def test_alone_an_empty_sweep_makes_a_batch_too(toy):
    data = dataset_of(toy)
    for number in (5, 9):
        sample = replace(data[0, 0, number], previous=None)
        check_batch(join([sample], BEV.cells), [sample])


def test_a_sample_follows_from_seed_epoch_and_position_alone(toy):
    def points(item, seed=0):
        return dataset_of(toy, options=replace(AUGMENTED, seed=seed))[item].current.points.xyz_m

    assert torch.equal(points((1, 4, 2)), points((1, 4, 2)))
    for other in ((0, 4, 2), (1, 5, 2)):
        assert points(other).shape != points((1, 4, 2)).shape
    assert points((1, 4, 2), seed=9).shape != points((1, 4, 2)).shape


def test_datasets_travel_without_open_files(toy):
    data = dataset_of(toy)
    assert data.caches
    again = pickle.loads(pickle.dumps(data))
    assert again._open is None
    assert torch.equal(again[0, 0, 2].target, data[0, 0, 2].target)


@pytest.mark.parametrize(("number", "named"), [(2, "000002"), (3, "000002"), (1, "000002")])
def test_an_error_names_the_very_frame(toy, number, named, monkeypatch):
    """The broken frame is t0, t-1 or t1 of the clip."""
    real = batches.make_scan
    cache = open_cache(toy)
    bad = str(cache[2].key)
    assert named in bad

    def make_scan(frame, *rest):
        if str(frame.key) == bad:
            raise ValueError("boom")
        return real(frame, *rest)

    def target(frame, *rest):
        raise RuntimeError("boom")

    monkeypatch.setattr(batches, "make_scan", make_scan)
    if number == 1:
        monkeypatch.setattr(batches, "_target", target)
    error = dataset_of(toy)[0, 0, number]
    assert isinstance(error, TrainError)
    assert bad in error.message
    assert "boom" in error.message
    assert "\n" not in str(error)


def test_a_point_that_no_voxel_can_hold_is_an_error_with_the_frames_name(toy):
    small = replace(PLAIN, scan=replace(SCAN, grid=VoxelGrid("cartesian", (1e-4, 1e-4, 1e-4))))
    error = dataset_of(toy, options=small)[0, 0, 0]
    assert isinstance(error, TrainError)
    assert str(open_cache(toy)[0].key) in error.message
    assert "crop to a range" in error.remedy


def test_damage_in_a_cache_is_handed_on_as_what_it_is(make_cache):
    url = make_cache(seed=4)
    data = dataset_of(url)
    healthy = data[0, 0, 0]
    for file in Path(url).rglob("points/xyz_m/c.*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    error = dataset_of(url)[0, 0, 0]
    assert isinstance(error, CacheCorrupt)
    assert "xyz_m" in error.message
    assert collate([healthy, error, healthy], BEV.cells) is error
    assert not isinstance(collate([healthy], BEV.cells), HildaError)


def test_a_cache_that_is_gone_is_an_error_too(make_cache):
    url = make_cache(scenes=1, frames=1, points=20)
    data = ClipDataset([f"{url}-gone"], [Clip(0, None, 0, None)], PLAIN)
    assert isinstance(data[0, 0, 0], CacheNotFound)
