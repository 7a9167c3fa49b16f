"""Projection heads, and running them once per row in use."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hilda_schema.errors import UsageError
from hilda_train.objectives.heads import ProjectionHead, project_rows


def linear_sizes(head: nn.Module):
    return [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]


def test_default_is_the_three_layer_mlp():
    head = ProjectionHead(96, 384)
    assert linear_sizes(head) == [(96, 2048), (2048, 2048), (2048, 384)]
    assert [type(m) for m in head] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]


def test_one_layer_is_a_linear_map():
    head = ProjectionHead(5, 3, layers=1)
    x = torch.randn(4, 5)
    assert torch.equal(head(x), x @ head[0].weight.T + head[0].bias)


def test_two_layers_with_relu():
    head = ProjectionHead(768, 1024, layers=2, hidden=2048, activation="relu")
    assert linear_sizes(head) == [(768, 2048), (2048, 1024)]
    assert isinstance(head[1], nn.ReLU)


@pytest.mark.parametrize("options", [{"layers": 0}, {"activation": "tanh"}])
def test_impossible_heads_are_refused(options):
    with pytest.raises(UsageError):
        ProjectionHead(4, 4, **options)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 12), pairs=st.integers(0, 30))
def test_project_rows_equals_head_of_gathered_rows(seed, rows, pairs):
    torch.manual_seed(seed)
    head = ProjectionHead(4, 3, hidden=5).double()
    features = torch.randn(rows, 4, dtype=torch.float64, requires_grad=True)
    index = torch.randint(rows, (pairs,))
    expected = head(features[index])
    found = project_rows(head, features, index)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(pairs, 3, dtype=torch.float64)
    inputs = (features, *head.parameters())
    for mine, reference in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference)


def test_the_head_sees_each_row_once():
    seen = []

    def head(rows):
        seen.append(rows)
        return rows

    features = torch.arange(6.0)[:, None]
    out = project_rows(head, features, torch.tensor([4, 1, 4, 4, 1]))
    assert seen[0].flatten().tolist() == [1.0, 4.0]
    assert out.flatten().tolist() == [4.0, 1.0, 4.0, 4.0, 1.0]
