"""Points put on grids: against dictionaries, on real sweeps, and with points that no grid can hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_schema.errors import TrainError, UsageError
from hilda_train.data.voxelise import VoxelGrid, voxelise

METRES = st.floats(-60, 60, width=32)
SWEEP = st.lists(st.tuples(METRES, METRES, METRES), max_size=40)


def as_points(sweep):
    xyz_m = torch.tensor(sweep, dtype=torch.float32).view(-1, 3)
    return xyz_m, torch.hstack([xyz_m, torch.arange(len(xyz_m))[:, None].float()])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(SWEEP, st.sampled_from(["mean", "first", "random"]), st.sampled_from([0.5, 8.0, 100.0]))
def test_equals_a_dictionary(sweep, reduction, size_m):
    xyz_m, feats = as_points(sweep)
    result = voxelise(xyz_m, feats, VoxelGrid(size=(size_m,) * 3), reduction, generator())
    cells = {}
    for row, point in enumerate(xyz_m.numpy()):
        cells.setdefault(tuple(np.floor(point / np.float32(size_m)).astype(int).tolist()), []).append(row)
    voxels = result.voxels
    assert voxels.coords.tolist() == [[0, *cell] for cell in sorted(cells)]
    for voxel, cell in enumerate(sorted(cells)):
        rows = cells[cell]
        assert (voxels.point_to_voxel == voxel).nonzero()[:, 0].tolist() == rows
        representative = int(result.representative[voxel])
        assert representative in rows
        expected = feats[rows].double().mean(0).float() if reduction == "mean" else feats[representative]
        torch.testing.assert_close(voxels.feats[voxel], expected)
        if reduction != "random":
            assert representative == rows[0]


def test_cylinder_by_hand():
    xyz_m = torch.tensor([[3.0, 4.0, 0.25], [0.0, -2.0, -0.05], [-1.0, 1e-9, 0.0]])
    coords = voxelise(xyz_m, xyz_m, VoxelGrid("cylindrical", (0.1, 1.0, 0.1))).voxels.coords
    by_hand = sorted([[0, 50, 53, 2], [0, 20, -90, -1], [0, 10, 180, 0]])
    assert coords.tolist() == by_hand


def test_positions_floor_to_the_voxels():
    xyz_m = torch.randn(200, 3, generator=generator()) * 20
    for grid in (VoxelGrid(), VoxelGrid("cylindrical", (0.1, 1.0, 0.1))):
        voxels = voxelise(xyz_m, xyz_m, grid).voxels
        assert torch.equal(voxels.position.floor().int(), voxels.coords[voxels.point_to_voxel, 1:])


def test_range_is_half_open_and_what_it_drops_is_counted():
    xyz_m = torch.tensor([[-1.0, 0, 0], [1.0, 0, 0], [0.999, 0, 0], [0, 0, 5.0], [0, 0, 0]])
    grid = VoxelGrid(size=(0.5, 0.5, 0.5), range_m=((-1, -1, -1), (1, 1, 1)))
    result = voxelise(xyz_m, xyz_m, grid)
    assert result.kept.tolist() == [0, 2, 4]
    assert result.n_outside == 2
    assert result.voxels.coords[result.voxels.point_to_voxel, 1].tolist() == [-2, 1, 0]


def test_random_representatives_follow_the_generator_and_are_uniform():
    xyz_m = torch.zeros(4, 3)
    feats = torch.arange(4)[:, None].float()
    draws = [int(voxelise(xyz_m, feats, VoxelGrid(), "random", generator(s)).representative) for s in range(400)]
    again = [int(voxelise(xyz_m, feats, VoxelGrid(), "random", generator(s)).representative) for s in range(400)]
    assert draws == again
    counts = np.bincount(draws, minlength=4)
    assert counts.min() > 60, "four points of one voxel: about 100 of 400 draws each"


def test_order_of_points_does_not_matter():
    xyz_m = torch.randn(500, 3, generator=generator()) * 2
    order = torch.randperm(500, generator=generator(1))
    straight, shuffled = (voxelise(p, p, VoxelGrid(size=(0.5,) * 3)) for p in (xyz_m, xyz_m[order]))
    assert torch.equal(straight.voxels.coords, shuffled.voxels.coords)
    assert torch.equal(straight.voxels.point_to_voxel[order], shuffled.voxels.point_to_voxel)
    torch.testing.assert_close(straight.voxels.feats, shuffled.voxels.feats)


def test_an_empty_sweep_has_no_voxels():
    for grid in (VoxelGrid(), VoxelGrid("cylindrical"), VoxelGrid(range_m=((-1, -1, -1), (1, 1, 1)))):
        result = voxelise(torch.zeros(0, 3), torch.zeros(0, 2), grid, "random", generator())
        assert result.voxels.coords.shape == (0, 4)
        assert result.voxels.feats.shape == (0, 2)


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ((0.0, 5_000.0, 0.0), "y = 5000 m, outside -3174.4..3174.4 m"),
        ((float("nan"), 0.0, 0.0), "x = nan m"),
        ((0.0, 0.0, float("inf")), "z = inf m"),
        ((1e30, 0.0, 0.0), "x = 1e\\+30 m"),
    ],
)
def test_points_that_no_voxel_can_hold_are_refused(point, words):
    xyz_m = torch.tensor([(0.0, 0.0, 0.0), point])
    with pytest.raises(TrainError, match=words):
        voxelise(xyz_m, xyz_m, VoxelGrid())


def test_a_cylinder_names_its_own_axes():
    xyz_m = torch.tensor([[4_000.0, 0.0, 0.0]])
    with pytest.raises(TrainError, match="distance = 4000 m"):
        voxelise(xyz_m, xyz_m, VoxelGrid("cylindrical"))


def test_wrong_requests():
    with pytest.raises(UsageError, match="'sphere' is not known"):
        VoxelGrid("sphere")
    with pytest.raises(UsageError, match="must be positive"):
        VoxelGrid(size=(0.1, 0.0, 0.1))
    with pytest.raises(UsageError, match="need a generator"):
        voxelise(torch.zeros(1, 3), torch.zeros(1, 1), VoxelGrid(), "random")


def read_bin(folder: Path, pattern: str, columns: int) -> torch.Tensor:
    path = sorted((folder / "data").glob(pattern))[0]
    return torch.from_numpy(np.fromfile(path, dtype="<f4").reshape(-1, columns))


def test_real_sweeps_give_the_known_numbers_of_voxels(sample_data):
    """0.1 m voxels counted with numpy.unique on floored coordinates; the cylinder to the rounding of arctan2."""
    nuscenes = read_bin(sample_data, "nuscenes_keyframe/samples/LIDAR_TOP/*.bin", 5)[:, :3]
    kitti = read_bin(sample_data, "kitti_raw/**/velodyne_points/data/*.bin", 4)[:, :3]
    assert len(voxelise(nuscenes, nuscenes, VoxelGrid()).voxels.coords) == 17_885
    assert len(voxelise(kitti, kitti, VoxelGrid()).voxels.coords) == 33_486
    cylinder = VoxelGrid("cylindrical", (0.1, 1.0, 0.1))
    assert abs(len(voxelise(nuscenes, nuscenes, cylinder).voxels.coords) - 15_947) <= 2
