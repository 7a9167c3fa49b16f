"""Ragged means and maxima against plain loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_train.objectives.reductions import at_least_float32, mean_over_present, segment_max, segment_mean


def rows_and_groups(seed: int, rows: int, groups: int):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return values, torch.randint(groups, (rows,), generator=generator)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(0, 30), groups=st.integers(1, 8))
def test_segments_equal_loops(seed, rows, groups):
    values, group = rows_and_groups(seed, rows, groups)
    mean, count = segment_mean(values, group, groups)
    largest = segment_max(values, group, groups)
    for index in range(groups):
        mine = values[group == index]
        assert count[index] == len(mine)
        if len(mine):
            torch.testing.assert_close(mean[index], mine.mean(dim=0))
            assert torch.equal(largest[index], mine.max(dim=0).values)
        else:
            assert not mean[index].any()
            assert not largest[index].any()


def test_gradients_are_right():
    values, group = rows_and_groups(seed=1, rows=9, groups=4)
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment_mean(x, group, 5)[0], values)
    assert torch.autograd.gradcheck(lambda x: segment_max(x, group, 5), values)


def test_equal_maxima_share_the_gradient_as_torch_does():
    values = torch.tensor([[1.0], [1.0], [0.0], [7.0]], requires_grad=True)
    segment_max(values, torch.tensor([0, 0, 0, 1]), 2).sum().backward()
    reference = torch.tensor([[1.0], [1.0], [0.0]], requires_grad=True)
    reference.amax(dim=0).sum().backward()
    assert torch.equal(values.grad, torch.cat((reference.grad, torch.ones(1, 1))))


def test_nan_is_never_hidden_by_a_larger_row():
    values = torch.tensor([[torch.nan], [5.0], [2.0]])
    group = torch.tensor([0, 0, 1])
    assert segment_max(values, group, 2).isnan().flatten().tolist() == [True, False]
    assert segment_mean(values, group, 2)[0].isnan().flatten().tolist() == [True, False]


def test_negative_maxima_are_not_raised_to_zero():
    assert segment_max(torch.tensor([[-3.0], [-2.0]]), torch.tensor([0, 0]), 1).item() == -2.0


def test_half_precision_is_summed_in_float32():
    # 4096 + 1 is 4096 in both half formats: a sum kept in them would stop growing.
    values = torch.ones(10_000, 1, dtype=torch.bfloat16)
    mean, count = segment_mean(values, torch.zeros(10_000, dtype=torch.long), 1)
    assert (mean.item(), count.item(), mean.dtype) == (1.0, 10_000.0, torch.float32)
    assert at_least_float32(values.double()).dtype == torch.float64


def test_mean_over_present_of_nothing_is_zero_with_zero_gradient():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    mean_over_present(values, torch.zeros(2, dtype=torch.bool)).backward()
    assert torch.equal(values.grad, torch.zeros(2))
