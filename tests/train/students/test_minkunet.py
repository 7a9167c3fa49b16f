"""MinkUNet: its parameters are the published ones, and it does what a point network must."""

import numpy as np
import pytest
import torch
from torch import nn

from hilda_schema.errors import TrainError, UsageError
from hilda_train.data.voxelise import VoxelGrid, voxelise
from hilda_train.students import PointBatch, build_student
from hilda_train.students.minkunet import PLANES, MinkUNet
from hilda_train.students.sparse import Geometry, SparseTensor

GRID = VoxelGrid(size=(0.5, 0.5, 0.5))


def sweep(seed, n=400, dtype=torch.float32):
    xyz_m = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) * 3
    return batch_of(xyz_m, dtype)


def batch_of(xyz_m, dtype=torch.float32):
    feats = torch.hstack([xyz_m, xyz_m.norm(dim=1, keepdim=True)]).to(dtype)
    return PointBatch.single(xyz_m, feats, voxelise(xyz_m, feats, GRID).voxels)


def small(seed=0, **options):
    torch.manual_seed(seed)
    return MinkUNet(**{"depth": 14, "width": 0.25, **options})


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        # SLidR's MinkUNet34, intensity in and 64 channels out: 37.85 M as published
        ({"depth": 34, "in_channels": 1, "levels": ("final",), "out_channels": 64}, 37_849_184),
        ({"depth": 18, "in_channels": 1}, 21_691_168),
        ({"depth": 14, "in_channels": 1, "width": 0.5}, 2_894_160),
    ],
)
def test_parameter_counts(options, parameters):
    with torch.device("meta"):
        assert count(MinkUNet(**options)) == parameters


def residual_parameters(cin, planes, blocks):
    """Basic blocks counted by hand: two 3^3 kernels, two norms, a 1^3 shortcut where the width changes."""
    total = 0
    for _ in range(blocks):
        total += 27 * cin * planes + 27 * planes * planes + 4 * planes
        total += cin * planes + 2 * planes if cin != planes else 0
        cin = planes
    return total


def test_parameter_count_of_34_from_the_architecture():
    encoder, decoder = PLANES[:4], PLANES[4:]
    total = 27 * 4 * 32 + 2 * 32
    cin = 32
    for planes, blocks in zip(encoder, (2, 3, 4, 6), strict=True):
        total += 8 * cin * cin + 2 * cin + residual_parameters(cin, planes, blocks)
        cin = planes
    for planes, skip in zip(decoder, (128, 64, 32, 32), strict=True):
        total += 8 * cin * planes + 2 * planes + residual_parameters(planes + skip, planes, 2)
        cin = planes
    with torch.device("meta"):
        assert count(MinkUNet(34, in_channels=4)) == total


def test_names_and_shapes_are_those_of_published_checkpoints():
    with torch.device("meta"):
        state = MinkUNet(34, in_channels=1, levels=("block8", "final"), out_channels=64).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    expected = {
        "conv0p1s1.kernel": (27, 1, 32),
        "bn0.bn.running_var": (32,),
        "conv1p1s2.kernel": (8, 32, 32),
        "conv2p2s2.kernel": (8, 32, 32),
        "conv3p4s2.kernel": (8, 64, 64),
        "conv4p8s2.kernel": (8, 128, 128),
        "block2.0.downsample.0.kernel": (32, 64),
        "block2.0.downsample.1.bn.weight": (64,),
        "block4.5.conv2.kernel": (27, 256, 256),
        "block4.5.norm2.bn.num_batches_tracked": (),
        "convtr4p16s2.kernel": (8, 256, 256),
        "convtr5p8s2.kernel": (8, 256, 128),
        "convtr6p4s2.kernel": (8, 128, 96),
        "convtr7p2s2.kernel": (8, 96, 96),
        "bntr7.bn.bias": (96,),
        "block5.0.conv1.kernel": (27, 256 + 128, 256),
        "block8.0.conv1.kernel": (27, 96 + 32, 96),
        "final.kernel": (96, 64),
        "final.bias": (1, 64),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    tops = {name.split(".")[0] for name in shapes}
    assert tops == {
        *("conv0p1s1", "conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2", "final"),
        *("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2"),
        *(f"bn{i}" for i in range(5)),
        *(f"bntr{i}" for i in range(4, 8)),
        *(f"block{i}" for i in range(1, 9)),
    }


@pytest.mark.parametrize("depth", [14, 18, 34, 50])
def test_every_depth_trains(depth):
    """One step forwards and back: every parameter gets a finite gradient."""
    network = small(depth=depth, width=0.125)
    batch = PointBatch.cat([sweep(0), sweep(1)])
    features = network(batch)
    assert [tuple(level.shape) for level in features] == [(800, channels) for channels in network.channels]
    sum(level.square().mean() for level in features).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_levels_are_the_decoder_blocks_in_the_order_asked_for():
    network = small(levels=("block8", "block6", "final"), out_channels=7)
    batch = sweep(0)
    geometry = Geometry(batch.voxels.coords, 1)
    outputs = network.eval().decode(SparseTensor(batch.voxels.feats, geometry))
    assert {name: x.stride for name, x in outputs.items()} == {
        "block5": 8,
        "block6": 4,
        "block7": 2,
        "block8": 1,
        "final": 1,
    }
    last, coarse, final = network(batch)
    assert torch.equal(last, outputs["block8"].feats[batch.voxels.point_to_voxel])
    assert len(coarse.unique(dim=0)) <= len(geometry.keys(4))
    assert final.shape == (400, 7)
    assert network.channels == (last.shape[1], coarse.shape[1], 7)


def dense_twin(kernel, transposed=False):
    """A (K^3, Cin, Cout) kernel for torch's dense convolutions: x fastest in the rows, x first in the cube."""
    size = round(len(kernel) ** (1 / 3)) if kernel.dim() == 3 else 1
    cube = kernel.view(size, size, size, *kernel.shape[-2:]).permute(2, 1, 0, 3, 4)
    return cube.permute(3, 4, 0, 1, 2) if transposed else cube.permute(4, 3, 0, 1, 2)


def test_a_full_grid_gives_the_dense_network():
    """On a cube without a hole a sparse U-Net is a dense one: rebuilt here from torch's own dense layers."""
    F = nn.functional
    network = small(seed=3).double().eval()
    for module in network.modules():  # statistics that differ, so that norms are tested too
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    axis = torch.arange(32)
    coords = torch.cat([torch.zeros(32**3, 1, dtype=torch.int64), torch.cartesian_prod(axis, axis, axis)], dim=1)
    feats = torch.randn(32**3, 4, dtype=torch.float64)

    def norm(module, x):
        bn = module.bn
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    def same(module, x):
        kernel = dense_twin(module.kernel)
        return F.conv3d(x, kernel, padding=kernel.shape[-1] // 2)

    def block(module, x):
        out = norm(module.norm2, same(module.conv2, F.relu(norm(module.norm1, same(module.conv1, x)))))
        shortcut = module.downsample
        return F.relu(out + (x if shortcut is None else norm(shortcut[1], same(shortcut[0], x))))

    net = network
    x = F.relu(norm(net.bn0, same(net.conv0p1s1, feats.T.view(1, 4, 32, 32, 32))))
    skips = [x]
    for conv, bn, blocks in (
        (net.conv1p1s2, net.bn1, net.block1),
        (net.conv2p2s2, net.bn2, net.block2),
        (net.conv3p4s2, net.bn3, net.block3),
        (net.conv4p8s2, net.bn4, net.block4),
    ):
        x = block(blocks[0], F.relu(norm(bn, F.conv3d(x, dense_twin(conv.kernel), stride=2))))
        skips.append(x)
    skips.pop()
    for conv, bn, blocks in (
        (net.convtr4p16s2, net.bntr4, net.block5),
        (net.convtr5p8s2, net.bntr5, net.block6),
        (net.convtr6p4s2, net.bntr6, net.block7),
        (net.convtr7p2s2, net.bntr7, net.block8),
    ):
        up = F.relu(norm(bn, F.conv_transpose3d(x, dense_twin(conv.kernel, transposed=True), stride=2)))
        x = block(blocks[0], torch.cat([up, skips.pop()], dim=1))
    with torch.no_grad():
        sparse = network.decode(SparseTensor(feats, Geometry(coords, 1)))["block8"].feats
        torch.testing.assert_close(sparse, x[0].flatten(1).T, rtol=0, atol=1e-10)


def test_order_of_points_does_not_matter():
    xyz_m = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) * 3
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    network = small().double().eval()
    straight = network(batch_of(xyz_m, torch.float64))
    shuffled = network(batch_of(xyz_m[order], torch.float64))
    for a, b in zip(straight, shuffled, strict=True):
        torch.testing.assert_close(a[order], b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("interpolation", ["nearest", "trilinear"])
def test_sweeps_of_a_batch_do_not_mix(interpolation):
    network = small(interpolation=interpolation).double().eval()
    parts = [sweep(seed, n, torch.float64) for seed, n in ((0, 400), (1, 0), (2, 1), (3, 250))]
    together = network(PointBatch.cat(parts))
    apart = [network(part) for part in parts]
    for level, features in enumerate(together):
        torch.testing.assert_close(features, torch.cat([part[level] for part in apart]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("points", [[0], [1], [1, 1], [0, 1], [0, 0]])
def test_training_survives_sweeps_with_no_or_one_point(points):
    network = small()
    features = network(PointBatch.cat([sweep(seed, n) for seed, n in enumerate(points)]))
    sum(level.sum() for level in features).backward()
    assert all(level.isfinite().all() for level in features)
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_bfloat16_autocast_stays_close():
    network = small().eval()
    batch = sweep(0)
    with torch.no_grad():
        exact = network(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(batch)
    for a, b in zip(exact, rough, strict=True):
        assert float((a - b.float()).norm() / a.norm()) < 0.05


def test_wrong_requests():
    with pytest.raises(UsageError, match="no MinkUNet33"):
        MinkUNet(33)
    with pytest.raises(UsageError, match="no level 'block4'"):
        MinkUNet(14, levels=("block4",))
    with pytest.raises(UsageError, match="no level"):
        MinkUNet(14, levels=())
    with pytest.raises(UsageError, match="belong together"):
        MinkUNet(14, levels=("final",))
    with pytest.raises(UsageError, match="belong together"):
        MinkUNet(14, out_channels=3)
    with pytest.raises(TrainError, match="without voxels"):
        small()(PointBatch.single(torch.zeros(1, 3), torch.zeros(1, 4)))


def test_real_sweep(sample_data):
    """The nuScenes keyframe: 34,688 points in, two levels out, and the coarser one constant within its voxels."""
    path = next((sample_data / "data/nuscenes_keyframe/samples/LIDAR_TOP").glob("*.bin"))
    points = torch.from_numpy(np.fromfile(path, dtype="<f4").reshape(-1, 5)[:, :4])
    voxels = voxelise(points[:, :3], points, VoxelGrid()).voxels
    network = build_student({"name": "minkunet", "depth": 14, "width": 0.25})
    coarse, fine = network(PointBatch.single(points[:, :3], points, voxels))
    assert coarse.shape == fine.shape == (34_688, 24)
    assert len(fine.detach().unique(dim=0)) <= 17_885
    assert len(coarse.detach().unique(dim=0)) <= 12_641
    (coarse.square().mean() + fine.square().mean()).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
