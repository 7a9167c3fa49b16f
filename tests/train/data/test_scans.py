"""A sweep as the student sees it, point by point and pair by pair: nothing moves without its pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilda_schema.errors import TrainError
from hilda_schema.reader import open_cache
from hilda_train.config import FitConfig, apply_set
from hilda_train.config.student import input_width
from hilda_train.data.augment import IDENTITY, AugmentOptions, draw
from hilda_train.data.scans import (
    INTENSITY,
    ScanOptions,
    intensity_remedy,
    make_scan,
    point_inputs,
    sensor_name,
)
from hilda_train.data.voxelise import VoxelGrid

TOY = {"toy": (0.4, 0.25)}
CROP = ((-12.0, -9.0, -3.0), (15.0, 11.0, 2.0))
VOXELS = VoxelGrid("cartesian", (0.5, 0.5, 0.5))
CROPPED = VoxelGrid("cartesian", (0.5, 0.5, 0.5), CROP)


def scan_of(frame, augmentation=IDENTITY, seed=0, pose=None, **options):
    options = ScanOptions(**{"grid": VOXELS, "intensity": TOY, **options})
    return make_scan(
        frame,
        (0, frame.index),
        np.eye(4) if pose is None else pose,
        augmentation,
        options,
        np.random.default_rng(seed),
    )


def apply(matrix, point):
    """A 3x3 matrix times a point, in plain float64."""
    return [sum(float(matrix[i, j]) * float(point[j]) for j in range(3)) for i in range(3)]


def original_rows(frame, scan, augmentation):
    """Which of the frame's points each of the scan's is, found by its augmented position alone."""
    where = np.array([apply(augmentation.matrix, point) for point in frame.points.xyz_m]).reshape(-1, 3)
    rows = []
    for xyz_m in scan.points.xyz_m.numpy().astype(np.float64):
        distance = np.abs(where - xyz_m).max(axis=1)
        rows.append(int(distance.argmin()))
        assert distance.min() < 1e-5
    return rows


def expected_pairs(frame, rows, visible_only=False, cameras=None):
    """(frame row of the pair, camera) of every pair that should teach a point in `rows`."""
    kept, found = set(rows), []
    for k in range(len(frame.pairs.point)):
        hidden = visible_only and not frame.pairs.visible[k]
        other = cameras is not None and int(frame.pairs.camera[k]) not in cameras
        if int(frame.pairs.point[k]) in kept and not hidden and not other:
            found.append((k, int(frame.pairs.camera[k])))
    return found


def check_pairs(frame, scan, rows, expected):
    """Every pair is there once, and names its point, its camera, its place in the image and its place in the store."""
    assert list(zip(scan.pair_row.tolist(), scan.pair_camera.tolist(), strict=True)) == expected
    for k, camera, point, uv01 in zip(
        scan.pair_row.tolist(), scan.pair_camera.tolist(), scan.pair_point.tolist(), scan.uv01.tolist(), strict=True
    ):
        assert rows[point] == int(frame.pairs.point[k])
        width, height = frame.camera_sizes_px[frame.camera_names[camera]]
        u, v = (float(value) for value in frame.pairs.uv_px[k])
        assert uv01 == pytest.approx(((u + 0.5) / width, (v + 0.5) / height), abs=1e-7)


def inside(xyz_m, box):
    return all(low <= value < high for value, low, high in zip(xyz_m, *box, strict=True))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    row=st.integers(0, 4),
    crop=st.booleans(),
    thin=st.booleans(),
    dropout=st.booleans(),
    visible_only=st.booleans(),
)
def test_pairs_follow_their_points_through_dropout_cropping_and_voxels(
    toy, seed, row, crop, thin, dropout, visible_only
):
    frame = open_cache(toy)[row]
    augmentation = draw(AugmentOptions(dropout=0.6 if dropout else 0.0), np.random.default_rng(seed))
    options = {"grid": CROPPED if crop else VOXELS, "thin": thin, "visible_only": visible_only, "reduction": "random"}
    scan = scan_of(frame, augmentation, seed, **options)
    rows = original_rows(frame, scan, augmentation)
    assert rows == sorted(set(rows))
    check_pairs(frame, scan, rows, expected_pairs(frame, rows, visible_only))
    assert scan.cameras == len(frame.camera_names)
    if not (thin or dropout):  # then the crop alone decides who stays
        moved = [apply(augmentation.matrix, point) for point in frame.points.xyz_m]
        assert rows == [k for k, xyz_m in enumerate(moved) if not crop or inside(xyz_m, CROP)]


def test_inputs_are_the_named_numbers_of_the_augmented_point(toy):
    frame = open_cache(toy)[2]
    augmentation = draw(AugmentOptions(), np.random.default_rng(5))
    channels = ("height", "range", "intensity", "xyz")
    scan = scan_of(frame, augmentation, channels=channels, grid=CROPPED)
    rows = original_rows(frame, scan, augmentation)
    assert 0 < len(rows) < len(frame.points)
    assert scan.points.feats.shape[1] == input_width(channels)
    assert scan.points.feats.dtype == torch.float32
    for row, feats in zip(rows, scan.points.feats.tolist(), strict=True):
        x, y, z = apply(augmentation.matrix, frame.points.xyz_m[row])
        intensity = (float(frame.points.intensity[row]) - 0.4) / 0.25
        expected = [z, (x * x + y * y + z * z) ** 0.5, intensity, x, y, z]
        assert feats == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("reduction", ["mean", "random"])
def test_voxels_hold_the_points_that_lie_in_them(toy, reduction):
    frame = open_cache(toy)[0]
    augmentation = draw(AugmentOptions(), np.random.default_rng(1))
    scan = scan_of(frame, augmentation, reduction=reduction)
    voxels = scan.points.voxels
    members = {}
    for k, xyz_m in enumerate(scan.points.xyz_m.tolist()):
        members.setdefault(tuple(int(np.floor(value / 0.5)) for value in xyz_m), []).append(k)
    assert sorted(members) == [tuple(row[1:]) for row in voxels.coords.tolist()]
    assert any(len(each) > 1 for each in members.values())
    for row, (cell, rows) in enumerate(sorted(members.items())):
        assert {int(voxels.point_to_voxel[k]) for k in rows} == {row}, cell
        feats = scan.points.feats[rows].double()
        if reduction == "mean":
            torch.testing.assert_close(voxels.feats[row].double(), feats.mean(0), atol=1e-6, rtol=1e-6)
        else:
            assert any(torch.equal(voxels.feats[row], scan.points.feats[k]) for k in rows)


def test_thinning_keeps_one_point_of_every_voxel_and_not_always_the_same(toy):
    frame = open_cache(toy)[0]
    coarse = VoxelGrid("cartesian", (4.0, 4.0, 4.0))
    cells = {tuple(np.floor(point / 4).astype(int)) for point in frame.points.xyz_m.astype(np.float64)}
    kept = []
    for seed in range(3):
        scan = scan_of(frame, seed=seed, grid=coarse, thin=True, reduction="random", neighbours=3)
        assert scan.points.voxels is None
        found = [tuple(np.floor(point / 4).astype(int)) for point in scan.points.xyz_m.double().numpy()]
        assert len(found) == len(set(found))
        assert set(found) == cells
        assert scan.points.neighbours.shape == (len(found), 3)
        kept.append(tuple(original_rows(frame, scan, IDENTITY)))
    assert len(set(kept)) == 3


@pytest.mark.parametrize("visible_only", [False, True])
def test_one_camera_and_its_frustum(toy, visible_only):
    """ScaLR's view: the points that one camera sees, and its pairs; every camera that sees something has its turn."""
    frame = open_cache(toy)[0]
    drawn = set()
    for seed in range(20):
        scan = scan_of(frame, seed=seed, cameras=1, frustum_only=True, visible_only=visible_only)
        (camera,) = set(scan.pair_camera.tolist())
        rows = original_rows(frame, scan, IDENTITY)
        expected = expected_pairs(frame, range(len(frame.points)), visible_only, {camera})
        check_pairs(frame, scan, rows, expected)
        assert rows == sorted({int(frame.pairs.point[k]) for k, _ in expected})
        drawn.add(camera)
    assert drawn == {0, 1, 2}


def test_a_camera_without_an_image_is_never_drawn(toy):
    frame = open_cache(toy)[1]
    assert list(frame.absent) == ["LEFT"]
    drawn = {int(scan_of(frame, seed=seed, cameras=1).pair_camera[0]) for seed in range(20)}
    assert drawn == {0, 2}
    both = scan_of(frame, seed=0, cameras=3)
    assert set(both.pair_camera.tolist()) == {0, 2}


def test_max_points_keeps_the_nearest_to_one_of_them(toy):
    frame = open_cache(toy)[3]
    xyz_m = frame.points.xyz_m.astype(np.float64)
    kept = set()
    for seed in range(5):
        scan = scan_of(frame, seed=seed, max_points=40)
        rows = original_rows(frame, scan, IDENTITY)
        assert len(rows) == 40
        distances = np.linalg.norm(xyz_m[:, None] - xyz_m[None], axis=2)
        balls = [set(np.argsort(distances[centre])[:40].tolist()) for centre in rows]
        assert set(rows) in balls
        check_pairs(frame, scan, rows, expected_pairs(frame, rows))
        kept.add(tuple(rows))
    assert len(kept) > 1
    everything = scan_of(frame, max_points=len(xyz_m))
    assert len(everything.points.xyz_m) == len(xyz_m)


def test_dropout_leaves_out_the_share_that_was_drawn(toy):
    frame = open_cache(toy)[0]
    augmentation = draw(AugmentOptions(rotation_deg=0, flip=0, scale=0, dropout=0.9), np.random.default_rng(3))
    sizes = [len(scan_of(frame, augmentation, seed).points.xyz_m) for seed in range(40)]
    assert len(set(sizes)) > 5
    # 40 draws of 300 points: the mean share's standard deviation is below 0.005
    assert np.mean(sizes) / len(frame.points) == pytest.approx(1 - augmentation.dropout, abs=0.02)


def test_sweeps_without_points_or_without_pairs(toy):
    cache = open_cache(toy)
    without_pairs, without_points = cache[5], cache[9]
    for options in (
        {},
        {"grid": CROPPED},
        {"thin": True, "reduction": "random", "neighbours": 4},
        {"cameras": 1, "frustum_only": True, "visible_only": True, "max_points": 5},
    ):
        nothing = scan_of(without_points, **options)
        assert len(nothing.points.xyz_m) == len(nothing.pair_point) == 0
        assert nothing.points.feats.shape == (0, 5)
        assert nothing.uv01.shape == (0, 2)
        assert nothing.points.batch_size == 1
        unseen = scan_of(without_pairs, **options)
        assert len(unseen.pair_point) == len(unseen.pair_row) == 0
        assert (len(unseen.points.xyz_m) == 0) == options.get("frustum_only", False)


def test_intensity_is_standardised_by_the_sensors_own_numbers():
    intensity = np.array([0.0, 40.0], np.float32)
    # ScaLR's datasets/*_for_scalr.py
    published = {
        "nuscenes": (18.742355, 22.04632),
        "semantickitti": (0.28613698, 0.14090556),
        "kitti_raw": (0.28613698, 0.14090556),
        "pandaset": (18.23640649, 25.86983417),
        "pandaset_pandargt": (23.06113565, 16.76273235),
    }
    assert published == INTENSITY
    for sensor, (mean, std) in published.items():
        column = point_inputs(np.zeros((2, 3), np.float32), intensity, ("intensity",), sensor, {})
        assert column[:, 0].tolist() == pytest.approx([(0 - mean) / std, (40 - mean) / std], rel=1e-6)
    own = point_inputs(np.zeros((2, 3), np.float32), intensity, ("intensity",), "nuscenes", {"nuscenes": (40, 2)})
    assert own[:, 0].tolist() == [-20, 0]


def test_each_lidar_of_a_dataset_has_its_own_name(make_cache):
    def name(dataset, **options):
        cache = open_cache(make_cache(dataset=dataset, options=options, scenes=1, frames=1, points=20))
        return sensor_name(cache.manifest.recipe.dataset)

    assert name("nuscenes", version="v1.0-mini") == "nuscenes"
    assert name("pandaset", lidar="pandar64") == name("pandaset") == "pandaset"
    assert name("pandaset", lidar="pandargt") == "pandaset_pandargt"


def test_an_unknown_sensor_is_refused_and_the_remedy_is_one(toy):
    with pytest.raises(TrainError, match="no intensity statistics for toy") as error:
        scan_of(open_cache(toy)[0], intensity={})
    assert error.value.remedy == intensity_remedy("toy")
    assignment = error.value.remedy.split('"')[1].replace("MEAN", "0.4").replace("STD", "0.25")
    config = apply_set(FitConfig(), [assignment])
    assert (config.data.intensity["toy"].mean, config.data.intensity["toy"].std) == (0.4, 0.25)
    assert len(scan_of(open_cache(toy)[0], intensity={}, channels=("xyz",)).points.xyz_m) == 300
