"""Layers between convolutions, and batches that are nearly or wholly empty."""

import pytest
import torch

from hilda_train.students.sparse import (
    BatchNorm,
    Geometry,
    RowBatchNorm,
    SparseTensor,
    add,
    concatenate,
    global_max,
    global_mean,
    relu,
)

COORDS = torch.tensor([[0, 0, 0, 0], [0, 5, 0, 0], [2, -3, 1, 1], [2, -3, 1, 2], [2, 9, 9, 9]])


def tensor(channels=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SparseTensor(torch.randn(len(COORDS), channels, generator=generator), Geometry(COORDS, batch_size=4))


def test_batch_norm_is_over_all_voxels():
    x = tensor()
    normalised = BatchNorm(4)(x).feats
    expected = (x.feats - x.feats.mean(0)) / (x.feats.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(normalised, expected)


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_of_too_few_rows_uses_running_statistics(rows):
    norm = RowBatchNorm(3)
    norm(torch.randn(50, 3) * 2 + 5)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    feats = torch.full((rows, 3), 7.0, requires_grad=True)
    out = norm(feats)
    torch.testing.assert_close(out, (feats - norm.running_mean) / (norm.running_var + norm.eps).sqrt())
    out.sum().backward()
    assert feats.grad.shape == (rows, 3)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_batch_norm_names_are_minkowskis():
    assert set(BatchNorm(2).state_dict()) == {
        f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_skip_and_residual():
    a, b = tensor(4, seed=1), tensor(2, seed=2)
    assert torch.equal(concatenate(a, b).feats, torch.hstack([a.feats, b.feats]))
    assert torch.equal(add(a, tensor(4, seed=3)).feats, a.feats + tensor(4, seed=3).feats)
    assert torch.equal(relu(tensor(4, seed=1)).feats, a.feats.clamp(min=0))


def test_global_pooling_per_item_with_empty_items_marked():
    x = tensor()
    x.feats.requires_grad_()
    largest, has_voxels = global_max(x)
    mean, also = global_mean(x)
    assert has_voxels.tolist() == also.tolist() == [True, False, True, False]
    for item in (0, 2):
        rows = x.feats[COORDS[:, 0] == item]
        torch.testing.assert_close(largest[item], rows.max(0).values)
        torch.testing.assert_close(mean[item], rows.mean(0))
    largest[has_voxels].sum().backward()
    assert int((x.feats.grad != 0).sum()) == 2 * 4


def test_global_pooling_of_nothing():
    empty = SparseTensor(torch.zeros(0, 3), Geometry(torch.zeros((0, 4), dtype=torch.int32), batch_size=2))
    largest, has_voxels = global_max(empty)
    assert largest.shape == (2, 3)
    assert not has_voxels.any()
