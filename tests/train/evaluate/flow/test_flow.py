"""Flow labels against another way to them and Argoverse 2's own; the metric by hand; a head that can only succeed."""

from __future__ import annotations

import numpy as np
import pyarrow.feather as feather
import pytest
import torch
from scipy.spatial.transform import Rotation

from hilda_schema.boxes import Boxes
from hilda_train.evaluate.flow.head import FlowHead, FlowTarget, correlation
from hilda_train.evaluate.flow.labels import scene_flow
from hilda_train.evaluate.flow.metrics import GROUPS, LEFT_OUT, EndPointErrors, group_of
from hilda_train.evaluate.heads.items import Item
from hilda_train.evaluate.heads.protocol import BevConfig, HeadProtocol, load_head_protocol
from hilda_train.students.points import PointBatch


def pose(rotation, translation):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation.as_matrix(), translation
    return matrix


def boxes(poses, size, tracks):
    quaternion = [np.roll(Rotation.from_matrix(each[:3, :3]).as_quat(), 1) for each in poses]
    count = len(poses)
    return Boxes(
        centre_m=np.array([each[:3, 3] for each in poses]),
        size_m=np.tile(size, (count, 1)).astype(float),
        lidar_q_box=np.array(quaternion),
        velocity_mps=np.full((count, 2), np.nan),
        points=np.ones(count, np.int64),
        category=np.array(["car"] * count, dtype=object),
        track=np.array(tracks, dtype=object),
    )


def test_points_of_a_box_move_as_it_does_over_ground_and_others_stand():
    """Everything is placed in a world, then seen from two poses of the vehicle."""
    rng = np.random.default_rng(0)
    world_t0 = pose(Rotation.from_euler("zyx", [0.3, 0.01, 0.02]), [100, 50, 1])
    world_t1 = pose(Rotation.from_euler("zyx", [0.5, -0.01, 0.0]), [104, 52, 1.1])
    before = pose(Rotation.from_euler("z", 0.7), [110, 55, 1])
    after = pose(Rotation.from_euler("z", 0.9), [113, 57, 1.2])
    parked = pose(Rotation.from_euler("z", 2.0), [95, 40, 1])
    gone = pose(Rotation.from_euler("z", 0.0), [120, 45, 1])
    local = rng.uniform(-0.95, 0.95, (300, 3)) * [2, 1, 0.75]
    scattered = rng.uniform([70, 50, -30], [130, 110, 30], (300, 3))
    apply = lambda a, points: points @ a[:3, :3].T + a[:3, 3]  # noqa: E731
    world = np.concatenate([apply(before, local), apply(parked, local), apply(gone, local), scattered])
    t0_world, t1_world = np.linalg.inv(world_t0), np.linalg.inv(world_t1)
    first = boxes([t0_world @ before, t0_world @ parked, t0_world @ gone], [4, 2, 1.5], ["a", "b", "c"])
    second = boxes([t1_world @ parked, t1_world @ after], [4, 2, 1.5], ["b", "a"])
    found = scene_flow(apply(t0_world, world), first, second, t0_world @ world_t1, 0.5)
    moved = np.concatenate([apply(after, local), apply(parked, local), world[600:]])
    expected = apply(t0_world, moved) - apply(t0_world, world)
    np.testing.assert_allclose(found.flow_m, expected, atol=1e-9)
    assert found.dynamic.tolist() == [True] * 300 + [False] * 900
    assert found.foreground.tolist() == [True] * 900 + [False] * 300
    assert found.valid.tolist() == [True] * 600 + [False] * 300 + [True] * 300


def test_half_a_metre_a_second_is_the_bound_of_motion():
    first = boxes([np.eye(4)], [2, 2, 2], ["a"])
    for metres, moves in ((0.0499, False), (0.0501, True)):
        second = boxes([pose(Rotation.identity(), [metres, 0, 0])], [2, 2, 2], ["a"])
        assert scene_flow(np.zeros((1, 3)), first, second, np.eye(4), 0.1).dynamic[0] == moves
        assert not scene_flow(np.zeros((1, 3)), first, second, np.eye(4), 0.2).dynamic[0]


def test_argoverses_own_labels_are_ours(sample_data):
    """Published per point: flow between the sweeps as the vehicle sees them, and what moves."""
    from hilda_cache.drives import open_drive
    from hilda_cache.labels import boxes_of_scene

    folder = sample_data / "data" / "argoverse2"
    drive = open_drive("argoverse2", folder)
    (scene,) = [name for name in drive.scenes() if len(drive.frames(name)) == 2]
    first, second = drive.frames(scene)
    (_, before), (_, after) = boxes_of_scene(drive, scene)
    xyz_m = drive.read(first).points.xyz_m.astype(np.float64)
    t0_SE3_t1 = np.linalg.inv(first.world_SE3_lidar) @ second.world_SE3_lidar
    found = scene_flow(xyz_m, before, after, t0_SE3_t1, (second.stamp_ns - first.stamp_ns) / 1e9)
    theirs = feather.read_table(next(folder.glob(f"**/{scene}/flow_labels.feather")))
    flow = np.stack([theirs[f"flow_t{axis}_m"].to_numpy() for axis in "xyz"], axis=1)
    assert len(flow) == len(xyz_m)
    # ours, as the vehicle sees it: carried to the second sweep's frame; axes are the vehicle's in both
    t1_SE3_t0 = np.linalg.inv(t0_SE3_t1)
    end = (xyz_m + found.flow_m) @ t1_SE3_t0[:3, :3].T + t1_SE3_t0[:3, 3]
    error = np.linalg.norm(end - xyz_m - flow, axis=1)[found.valid]
    dynamic, foreground = theirs["dynamic"].to_numpy(), theirs["classes"].to_numpy() > 0
    assert dynamic.sum() > 1000
    print(f"median {np.median(error):.4f} m, 99.9 % below {np.quantile(error, 0.999):.4f} m; "
          f"dynamic equal {np.mean(dynamic == found.dynamic):.5f}, "
          f"foreground equal {np.mean(foreground == found.foreground):.5f}")  # fmt: skip
    assert np.median(error) < 0.002  # theirs are computed in single precision, kilometres from the origin
    assert np.quantile(error, 0.999) < 0.02
    assert np.mean((dynamic == found.dynamic)[found.valid]) > 0.999
    assert np.mean(foreground == found.foreground) > 0.998


def test_the_three_way_error_by_hand():
    errors = EndPointErrors()
    true = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [3, 4, 0], [9, 9, 9]], float)
    group = group_of(
        np.array([False, False, True, True, True]), np.array([False, False, False, True, True]),
        np.array([True, True, True, True, False]),
    )  # fmt: skip
    assert group.tolist() == [0, 0, 1, 2, LEFT_OUT]
    errors.add(np.zeros((5, 3)), true, group)
    assert errors.mean_m.tolist() == [0, 1, 5]
    assert errors.three_way_m == pytest.approx(2)
    assert errors.points.tolist() == [2, 1, 1]
    # over frames, points count alike: two frames are not the mean of two means
    errors.add(np.array([[0.0, 0, 8]]), np.zeros((1, 3)), np.array([0]))
    assert errors.mean_m[0] == pytest.approx(8 / 3)
    assert np.isnan(EndPointErrors().three_way_m)


def small():
    protocol = load_head_protocol(HeadProtocol, "hilda_train.evaluate.flow", "quick", ())
    return protocol.model_copy(update={"bev": BevConfig(range_m=16.0, cell_m=1.0, channels=16, blocks=1)})


def test_a_head_starts_from_standing_still_and_learns_what_its_features_say(echo, overfit):
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    model = FlowHead(echo(4), small(), frozen=True)
    items = []
    for interval_s in (0.5, 0.25):
        xyz_m = torch.rand((400, 3), generator=rng) * 32 - 16
        velocity = torch.zeros((400, 3))
        velocity[300:] = torch.randn((100, 3), generator=rng) * 4
        group = torch.zeros(400, dtype=torch.int64)
        group[200:300], group[300:] = 1, 2
        feats = torch.cat((velocity, torch.ones((400, 1))), dim=1)
        flow_m = velocity * interval_s
        target = FlowTarget(xyz_m, flow_m, group, interval_s, flow_m, group, torch.arange(400))
        both = PointBatch.cat([PointBatch.single(xyz_m, feats), PointBatch.single(xyz_m, torch.zeros((400, 4)))])
        items.append(Item("toy/s/f", both, torch.eye(4).repeat(2, 1, 1), target))
    seen = model.see(items, torch.device("cpu"))
    assert all(float(each.detach().abs().max()) == 0 for each in model.flows(seen))
    overfit(model, seen, 150)
    errors, still = EndPointErrors(), EndPointErrors()
    for each in seen:
        true, group = each.target.true_m.numpy(), each.target.true_group.numpy()
        errors.add(model.predict(each).numpy(), true, group)
        still.add(np.zeros_like(true), true, group)
    assert len(GROUPS) == 3
    assert errors.three_way_m < 0.15 * still.three_way_m


def test_cells_are_compared_with_those_around_them():
    rng = torch.Generator().manual_seed(0)
    first, second = torch.randn((2, 3, 5, 6), generator=rng), torch.randn((2, 3, 5, 6), generator=rng)
    rows = torch.tensor([0, 7, 29, 30, 58])
    found = correlation(first, second, rows, 2)
    for row, line in zip(rows.tolist(), found, strict=True):
        item, y, x = row // 30, row % 30 // 6, row % 6
        for i in range(-2, 3):
            for j in range(-2, 3):
                inside = 0 <= y + i < 5 and 0 <= x + j < 6
                expected = float(first[item, :, y, x] @ second[item, :, y + i, x + j]) if inside else 0.0
                assert float(line[(i + 2) * 5 + j + 2]) == pytest.approx(expected, abs=1e-6)


def test_the_second_sweep_is_seen_from_the_first(echo):
    """A point of the second sweep lands in the cell where it stood, seen from the first."""
    model = FlowHead(echo(1), small(), frozen=True)
    here = torch.tensor([[2.5, 3.5, 0.0]])
    shift = torch.eye(4)
    shift[0, 3] = 4.0  # the vehicle drives on by four metres: what stands comes four metres nearer
    there = here - shift[:3, 3]
    both = PointBatch.cat([PointBatch.single(here, torch.ones((1, 1))), PointBatch.single(there, torch.ones((1, 1)))])
    none = torch.zeros((0, 3))
    target = FlowTarget(
        here, torch.zeros((1, 3)), torch.zeros(1, dtype=torch.int64), 0.1, none, none[:, 0].long(), none[:, 0].long()
    )
    (seen,) = model.see([Item("k", both, torch.stack([torch.eye(4), shift]), target)], torch.device("cpu"))
    assert seen.cells[0].tolist() == seen.cells[1].tolist() == [18 * 32 + 19]
