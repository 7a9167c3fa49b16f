"""Kernel layouts: the same weight at the same offset, whatever the order in which a library stores them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hilda_train.export import kernels
from hilda_train.students.sparse import kernel_offsets


def kernel_of(size, cin=3, cout=2):
    shape = (size**3, cin, cout) if size > 1 else (cin, cout)
    return torch.randn(shape, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


def table(taps):
    return {offset: np.asarray(weight) for offset, weight in taps}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[offset], b[offset]) for offset in a)


@pytest.fixture
def ours(naive):
    """Offset -> weight of a kernel as it is stored here; MinkowskiEngine's order."""
    return lambda kernel: table(naive.listed_taps(naive.minkowski_offsets)(kernel.numpy()))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_the_engines_own_order_is_minkowskis(naive, size):
    assert [tuple(row) for row in kernel_offsets(size).tolist()] == list(naive.minkowski_offsets(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_torchsparse_has_the_weights_at_its_own_offsets(naive, ours, size):
    """Its even kernels lie around the voxel's own corner as ours do for a size of two alone."""
    kernel = kernel_of(size)
    found = table(naive.listed_taps(naive.torchsparse_offsets)(kernels.torchsparse(kernel).numpy()))
    if size == 4:
        found = {tuple(d + 1 for d in offset): weight for offset, weight in found.items()}
    assert same(found, ours(kernel))
    assert torch.equal(kernels.torchsparse(kernel), kernel) == bool(size % 2)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_spconv_has_the_weights_on_the_axes_of_its_coordinates(naive, ours, size):
    kernel = kernel_of(size)
    xyz, zyx = kernels.spconv_xyz(kernel), kernels.spconv_zyx(kernel)
    assert xyz.shape == zyx.shape == (2, size, size, size, 3)
    assert xyz.is_contiguous()
    assert zyx.is_contiguous()
    assert same(table(naive.spconv_taps(xyz.numpy())), ours(kernel))
    turned = {offset[::-1]: weight for offset, weight in naive.spconv_taps(zyx.numpy())}
    assert same(turned, ours(kernel))


@pytest.mark.parametrize(("size", "larger"), [(1, 3), (1, 5), (3, 5), (5, 5)])
def test_an_enlarged_kernel_is_zero_around_the_old_one(ours, size, larger):
    kernel = kernel_of(size)
    before, after = ours(kernel), ours(kernels.enlarged(kernel, larger))
    assert len(after) == larger**3
    for offset, weight in after.items():
        assert np.array_equal(weight, before.get(offset, np.zeros((3, 2))))


def test_the_identity_is_one_at_the_voxel_itself(ours):
    for offset, weight in ours(kernels.identity(4, 3)).items():
        assert np.array_equal(weight, np.eye(4) if offset == (0, 0, 0) else np.zeros((4, 4)))
