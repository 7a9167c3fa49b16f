"""Batches of points, and voxel features read back at points."""

import pytest
import torch

from hilda_schema.errors import TrainError
from hilda_train.data.voxelise import VoxelGrid, voxelise
from hilda_train.students import PointBatch, read_at_points
from hilda_train.students.neighbours import nearest_neighbours
from hilda_train.students.sparse import Geometry, SparseTensor


def sweep(seed, n=300, with_neighbours=True):
    xyz_m = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) * 2
    neighbours = nearest_neighbours(xyz_m, torch.zeros(n, dtype=torch.int64), 4) if with_neighbours else None
    return PointBatch.single(xyz_m, xyz_m, voxelise(xyz_m, xyz_m, VoxelGrid(size=(0.5,) * 3)).voxels, neighbours)


def test_joining_keeps_every_sweep_as_it_was():
    parts = [sweep(0), sweep(1, n=0), PointBatch.cat([sweep(2), sweep(3, n=7)])]
    batch = PointBatch.cat(parts)
    assert batch.batch_size == 4
    assert torch.bincount(batch.batch_index, minlength=4).tolist() == [300, 0, 300, 7]
    voxels = batch.voxels
    assert torch.equal(voxels.coords[voxels.point_to_voxel, 0].long(), batch.batch_index)
    assert torch.equal(voxels.position.floor().int(), voxels.coords[voxels.point_to_voxel, 1:])
    Geometry(voxels.coords, batch.batch_size)  # in order and unique, or it raises
    last = sweep(3, n=7)
    assert torch.equal(batch.xyz_m[batch.neighbours[-7:]], last.xyz_m[last.neighbours])


def test_joining_refuses_what_only_some_have():
    with pytest.raises(TrainError, match="only some of the 2 batches to join have neighbours"):
        PointBatch.cat([sweep(0), sweep(1, with_neighbours=False)])


def test_moving_keeps_every_field():
    batch = sweep(0).to("cpu")
    assert torch.equal(batch.voxels.coords, sweep(0).voxels.coords)
    assert torch.equal(batch.neighbours, sweep(0).neighbours)
    bare = PointBatch.single(torch.zeros(1, 3), torch.zeros(1, 1)).to("cpu")
    assert bare.voxels is None
    assert bare.neighbours is None


def level(batch, stride, feats_of):
    geometry = Geometry(batch.voxels.coords, batch.batch_size)
    return SparseTensor(feats_of(geometry.coords(stride).double()), geometry, stride)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_nearest_reads_the_voxel_around_the_point(stride):
    batch = PointBatch.cat([sweep(0), sweep(1)])
    own = read_at_points(level(batch, stride, lambda coords: coords), batch.voxels)
    assert torch.equal(own[:, 0].long(), batch.batch_index)
    assert torch.equal(own[:, 1:], (batch.voxels.position / stride).floor().double() * stride)


def filled(size=6):
    """A cube without holes, so that each inner point has all eight voxels around it."""
    axis = torch.arange(-size, size) + 0.5
    centres = torch.cartesian_prod(axis, axis, axis)
    points = torch.cat([torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 6 - 3, centres])
    return PointBatch.single(points, points, voxelise(points, points, VoxelGrid(size=(1.0,) * 3)).voxels)


@pytest.mark.parametrize("stride", [1, 2])
def test_trilinear_reproduces_a_linear_field(stride):
    """A field linear in the voxels' centres is read at each point with no error."""
    batch = filled()
    linear = torch.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, 0.25]], dtype=torch.float64)
    x = level(batch, stride, lambda coords: (coords[:, 1:] + stride / 2) @ linear)
    read = read_at_points(x, batch.voxels, "trilinear")[:200]
    torch.testing.assert_close(read, batch.voxels.position[:200].double() @ linear, rtol=0, atol=1e-5)


def test_trilinear_weighs_only_occupied_voxels():
    """Against a loop over the eight corners, in a cloud full of holes."""
    batch = PointBatch.cat([sweep(0), sweep(1)])
    x = level(batch, 2, lambda coords: torch.sin(coords))
    rows = {tuple(key): feats for key, feats in zip(x.coords.tolist(), x.feats, strict=True)}
    read = read_at_points(x, batch.voxels, "trilinear")
    for point in range(0, 600, 37):
        total, weight_sum = torch.zeros(4, dtype=torch.float64), 0.0
        place = batch.voxels.position[point].double() / 2 - 0.5
        for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
            voxel = place.floor() + corner
            weight = float((1 - (place - voxel).abs()).prod())
            key = (int(batch.batch_index[point]), *(int(a) * 2 for a in voxel))
            if key in rows:
                total, weight_sum = total + weight * rows[key], weight_sum + weight
        torch.testing.assert_close(read[point], total / weight_sum, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "trilinear"])
def test_reading_is_differentiable_and_takes_no_points(interpolation):
    batch = sweep(0)
    x = level(batch, 2, lambda coords: coords)

    def read(feats):
        return read_at_points(x.with_feats(feats), batch.voxels, interpolation).sum(0)

    assert torch.autograd.gradcheck(read, x.feats.requires_grad_())
    empty = sweep(0, n=0)
    assert read_at_points(level(empty, 4, lambda coords: coords), empty.voxels, interpolation).shape == (0, 4)
