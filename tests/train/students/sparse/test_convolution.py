"""Every sparse convolution equals PyTorch's dense one on the same grid, read at the occupied voxels."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from hilda_schema.errors import TrainError
from hilda_train.students.sparse import (
    Geometry,
    SparseTensor,
    StridedConv,
    SubmanifoldConv,
    TransposedConv,
    kernel_map,
    kernel_offsets,
)

BATCH, LOW, EDGE = 2, -8, 16  # the dense grid spans LOW..LOW + EDGE - 1 along each axis; LOW is even
CIN, COUT = 3, 4


def cloud(seed, density=0.08):
    """Random occupied voxels, negative coordinates among them, a margin of 3 kept so that padding never matters."""
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.zeros(BATCH, EDGE, EDGE, EDGE, dtype=torch.bool)
    inner = slice(3, EDGE - 3)
    occupied[:, inner, inner, inner] = torch.rand(BATCH, *[EDGE - 6] * 3, generator=generator) < density
    coords = occupied.nonzero()
    coords[:, 1:] += LOW
    return coords


def features(geometry, stride, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(geometry.keys(stride)), CIN, dtype=torch.float64, generator=generator)


def densify(x):
    """(B, C, X, Y, Z) grid of a sparse tensor, one cell per voxel of its stride, zeros where not occupied."""
    batch, *xyz = x.coords.long().unbind(1)
    place = [(axis - LOW) // x.stride for axis in xyz]
    grid = x.feats.new_zeros(BATCH, *[EDGE // x.stride] * 3, x.feats.shape[1])
    grid[batch, place[0], place[1], place[2]] = x.feats
    return grid.permute(0, 4, 1, 2, 3)


def read(grid, coords, stride):
    """Rows of a dense (B, C, X, Y, Z) result at sparse coordinates."""
    batch, *xyz = coords.long().unbind(1)
    place = [(axis - LOW) // stride for axis in xyz]
    return grid[batch, :, place[0], place[1], place[2]]


def dense_kernel(kernel, size):
    """(Cin, Cout, Kx, Ky, Kz) from (K^3, Cin, Cout), by the documented index k = (kz * K + ky) * K + kx."""
    dense = kernel.new_zeros(kernel.shape[1], kernel.shape[2], size, size, size)
    for kx in range(size):
        for ky in range(size):
            for kz in range(size):
                dense[:, :, kx, ky, kz] = kernel[(kz * size + ky) * size + kx]
    return dense


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("density", [0.01, 0.3])
def test_submanifold_equals_dense(size, stride, density):
    geometry = Geometry(cloud(size, density), BATCH)
    x = SparseTensor(features(geometry, stride, 1), geometry, stride)
    layer = SubmanifoldConv(CIN, COUT, size, bias=True).double()
    out = layer(x)
    before, after = (size // 2, size // 2) if size % 2 else (0, size - 1)
    padded = F.pad(densify(x), (before, after) * 3)
    weight = dense_kernel(layer.kernel.view(-1, CIN, COUT), size).transpose(0, 1)
    expected = F.conv3d(padded, weight, layer.bias[0])
    torch.testing.assert_close(out.feats, read(expected, x.coords, stride), rtol=0, atol=1e-12)
    assert (out.stride, out.geometry) == (stride, geometry)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_strided_equals_dense(size, stride):
    geometry = Geometry(cloud(10 + size), BATCH)
    x = SparseTensor(features(geometry, stride, 2), geometry, stride)
    layer = StridedConv(CIN, COUT, size).double()
    out = layer(x)
    weight = dense_kernel(layer.kernel, size).transpose(0, 1)
    expected = F.conv3d(densify(x), weight, stride=2, padding=size // 2 if size % 2 else 0)
    assert out.stride == 2 * stride
    torch.testing.assert_close(out.feats, read(expected, out.coords, out.stride), rtol=0, atol=1e-12)
    if size == 2:  # whole children cubes are covered, so nothing of the dense result is lost outside either
        assert int((expected.abs().amax(1) > 0).sum()) == len(out.feats)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_equals_dense(size, stride):
    geometry = Geometry(cloud(20 + size), BATCH)
    x = SparseTensor(features(geometry, 2 * stride, 3), geometry, 2 * stride)
    layer = TransposedConv(CIN, COUT, size).double()
    out = layer(x)
    padding = size % 2
    weight = dense_kernel(layer.kernel, size)
    expected = F.conv_transpose3d(densify(x), weight, stride=2, padding=padding, output_padding=padding)
    assert out.stride == stride
    torch.testing.assert_close(out.feats, read(expected, out.coords, stride), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "stride"),
    [
        (SubmanifoldConv(2, 3, 1, bias=True), 1),
        (SubmanifoldConv(2, 3, 2), 1),
        (SubmanifoldConv(2, 3, 3), 1),
        (StridedConv(2, 3, 2), 1),
        (StridedConv(2, 3, 3), 1),
        (TransposedConv(2, 3, 2), 2),
        (TransposedConv(2, 3, 3), 2),
    ],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(layer, stride):
    geometry = Geometry(cloud(5, density=0.004), BATCH)
    layer = layer.double()
    feats = torch.randn(len(geometry.keys(stride)), 2, dtype=torch.float64, requires_grad=True)

    def run(feats, kernel):
        return functional_call(layer, {"kernel": kernel}, SparseTensor(feats, geometry, stride)).feats

    kernel = layer.kernel.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (feats, kernel))


def test_backward_keeps_no_gathered_matrix():
    """Between forward and backward a convolution holds its input and its kernel, nothing of the size of its pairs."""
    geometry = Geometry(cloud(6, density=0.3), BATCH)
    feats = torch.randn(len(geometry.keys(1)), 8, requires_grad=True)
    layer = SubmanifoldConv(8, 8, 3)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(SparseTensor(feats, geometry))
    assert sum(t.numel() for t in saved) == feats.numel() + layer.kernel.numel()


def test_items_of_a_batch_do_not_mix():
    """The same cloud as item 0 alone and beside another item that touches it in space."""
    coords = cloud(7, density=0.2)
    first = coords[coords[:, 0] == 0]
    together, alone = Geometry(coords, BATCH), Geometry(first, 1)
    feats = features(together, 1, 4)
    layers = torch.nn.Sequential(SubmanifoldConv(CIN, 4, 3), StridedConv(4, 4, 3), TransposedConv(4, 4, 3)).double()
    both, one = layers(SparseTensor(feats, together)), layers(SparseTensor(feats[: len(first)], alone))
    torch.testing.assert_close(both.feats[: len(first)], one.feats, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 64])
def test_blocks_of_outputs_change_nothing(monkeypatch, rows):
    """Large batches are worked on in blocks of output rows: the same result and gradients as in one piece."""
    layers = torch.nn.Sequential(SubmanifoldConv(CIN, 8, 3), StridedConv(8, 8, 2), TransposedConv(8, 4, 2)).double()
    coords = cloud(13, density=0.1)
    runs = []
    for block_rows in (1 << 14, rows):
        monkeypatch.setattr(kernel_map, "BLOCK_ROWS", block_rows)
        geometry = Geometry(coords, BATCH)
        feats = features(geometry, 1, 7).requires_grad_()
        out = layers(SparseTensor(feats, geometry)).feats
        runs.append((out, *torch.autograd.grad(out.square().sum(), [feats, *layers.parameters()])))
    assert len(geometry.kernel_map("submanifold", 1, 3).blocks) > 1
    for whole, split in zip(*runs, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_two_million_voxels():
    """Forward and backward; some output rows against a sum over neighbours that are looked up in a set."""
    generator = torch.Generator().manual_seed(0)
    coords = torch.randint(-100, 100, (2_600_000, 3), generator=generator)
    coords = torch.unique(torch.hstack([torch.zeros(len(coords), 1, dtype=torch.int64), coords]), dim=0)
    assert len(coords) > 2_000_000
    layers = [SubmanifoldConv(2, 4, 3), StridedConv(4, 4), TransposedConv(4, 2)]
    feats = torch.randn(len(coords), 2, generator=generator, requires_grad=True)
    x = SparseTensor(feats, Geometry(coords, 1))
    first = layers[0](x)
    layers[2](layers[1](first)).feats.sum().backward()
    assert feats.grad.isfinite().all()
    row_of = {tuple(place): row for row, place in enumerate(coords[:, 1:].tolist())}
    for row in torch.randint(len(coords), (200,), generator=generator).tolist():
        place = coords[row, 1:]
        neighbours = [row_of.get(tuple((place + offset).tolist())) for offset in kernel_offsets(3)]
        terms = [feats[n] @ layers[0].kernel[k] for k, n in enumerate(neighbours) if n is not None]
        torch.testing.assert_close(first.feats[row], sum(terms), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("voxels", [0, 1])
def test_none_or_one_voxel(voxels):
    geometry = Geometry(torch.zeros((voxels, 4), dtype=torch.int32), batch_size=1)
    layers = torch.nn.Sequential(SubmanifoldConv(2, 4, 3), StridedConv(4, 5, 2), TransposedConv(5, 6, 2))
    feats = torch.ones(voxels, 2, requires_grad=True)
    out = layers(SparseTensor(feats, geometry))
    out.feats.sum().backward()
    assert out.feats.shape == (voxels, 6)
    assert layers[0].kernel.grad.isfinite().all()
    if voxels:
        by_hand = feats[0] @ layers[0].kernel[13] @ layers[1].kernel[0] @ layers[2].kernel[0]
        torch.testing.assert_close(out.feats[0], by_hand)


def test_upwards_from_the_finest_level_is_refused():
    geometry = Geometry(torch.zeros((1, 4), dtype=torch.int32), batch_size=1)
    with pytest.raises(TrainError, match="stride 0"):
        TransposedConv(1, 1)(SparseTensor(torch.ones(1, 1), geometry))


def test_bfloat16_autocast_stays_close_and_keeps_float32_gradients():
    """bfloat16 has 8 bits of mantissa: one layer's rounding is below 2^-8 of the largest term."""
    geometry = Geometry(cloud(8, density=0.3), BATCH)
    feats = torch.randn(len(geometry.keys(1)), 32)
    layer = SubmanifoldConv(32, 32, 3)
    runs = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = layer(SparseTensor(feats, geometry)).feats
        (gradient,) = torch.autograd.grad(out.float().square().sum(), layer.kernel)
        runs.append((out.detach(), gradient))
    (exact, exact_gradient), (rough, rough_gradient) = runs
    assert (rough.dtype, rough_gradient.dtype) == (torch.bfloat16, torch.float32)
    assert 1e-4 < float((rough.float() - exact).norm() / exact.norm()) < 2**-7
    assert float((rough_gradient - exact_gradient).norm() / exact_gradient.norm()) < 2**-6


def test_bfloat16_sums_over_offsets_in_float32():
    """256 + 26 ones: added one by one in bfloat16, whose step there is 2, the ones would vanish."""
    cube = torch.cartesian_prod(torch.tensor([0]), *[torch.arange(3)] * 3)
    layer = SubmanifoldConv(1, 1, 3)
    layer.kernel.data.fill_(1)
    layer.kernel.data[13] = 256
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(SparseTensor(torch.ones(27, 1), Geometry(cube, 1))).feats
    assert out[13].item() == 256 + 26


def test_autocast_leaves_float64_alone():
    geometry = Geometry(cloud(9), BATCH)
    layer = SubmanifoldConv(CIN, COUT, 3).double()
    x = SparseTensor(features(geometry, 1, 5), geometry)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(x).feats
    assert torch.equal(inside, layer(x).feats)


def test_two_runs_give_the_same_bits():
    geometry = Geometry(cloud(11, density=0.3), BATCH)
    layer = SubmanifoldConv(16, 16, 3)
    feats = torch.randn(len(geometry.keys(1)), 16, requires_grad=True)
    runs = []
    for _ in range(2):
        out = layer(SparseTensor(feats, Geometry(cloud(11, density=0.3), BATCH))).feats
        runs.append((out, *torch.autograd.grad(out.square().sum(), [feats, layer.kernel])))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (SubmanifoldConv(4, 5, 3), (27, 4, 5)),
        (SubmanifoldConv(4, 5, 1), (4, 5)),
        (StridedConv(4, 5), (8, 4, 5)),
        (TransposedConv(4, 5), (8, 4, 5)),
    ],
)
def test_parameters_have_minkowski_shapes(layer, shape):
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {"kernel": shape}


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    coords = cloud(12, density=0.3)
    layers = torch.nn.Sequential(SubmanifoldConv(CIN, 8, 3), StridedConv(8, 8, 2), TransposedConv(8, 8, 2)).double()
    geometry = Geometry(coords, BATCH)
    x = SparseTensor(features(geometry, 1, 6), geometry)
    expected = layers(x).feats
    on_gpu = layers.cuda()(SparseTensor(x.feats.cuda(), Geometry(coords.cuda(), BATCH))).feats
    torch.testing.assert_close(on_gpu.cpu(), expected, rtol=0, atol=1e-10)
