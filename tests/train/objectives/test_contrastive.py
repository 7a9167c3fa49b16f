"""PPKT's InfoNCE against loops."""

import math

import pytest
import torch
from torch import nn

from hilda_train.objectives.contrastive import PointContrast, info_nce


def naive_info_nce(k, q, temperature):
    def unit(row):
        length = math.sqrt(sum(x * x for x in row))
        return [x / length for x in row]

    k, q = [unit(row) for row in k.tolist()], [unit(row) for row in q.tolist()]
    total = 0.0
    for i, anchor in enumerate(k):
        scores = [math.exp(sum(a * b for a, b in zip(anchor, other, strict=True)) / temperature) for other in q]
        total -= math.log(scores[i] / sum(scores))
    return total / len(k)


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_loss_equals_the_equation(rows):
    k, q = torch.randn(2, rows, 4, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    assert info_nce(k, q, 0.07).item() == pytest.approx(naive_info_nce(k, q, 0.07), abs=1e-12)


def test_gradients_are_right_and_lengths_do_not_matter():
    k, q = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: info_nce(x, q, 0.5), k)
    torch.testing.assert_close(info_nce(k, q, 0.5), info_nce(9 * k, 0.1 * q, 0.5))


def test_similarities_are_taken_in_float32_under_autocast():
    k, q = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        inside = info_nce(k, q, 0.07)
    assert torch.equal(inside, info_nce(k, q, 0.07))


class TestModule:
    def build(self, pairs: int):
        torch.manual_seed(0)
        return PointContrast(nn.Linear(3, 4), nn.Linear(6, 4), pairs=pairs).double()

    def inputs(self, pairs: int):
        generator = torch.Generator().manual_seed(2)
        features = torch.randn(10, 3, generator=generator, dtype=torch.float64)
        rows = torch.randint(10, (pairs,), generator=generator)
        return features, rows, torch.randn(pairs, 6, generator=generator, dtype=torch.float64)

    def test_all_pairs_when_there_are_few(self):
        module, (features, rows, teacher) = self.build(100), self.inputs(7)
        term = module(features, rows, teacher)
        expected = naive_info_nce(module.student_head(features[rows]), module.teacher_head(teacher), 0.07)
        assert term.loss.item() == pytest.approx(expected)
        assert term.logs["pairs"].item() == 7

    def test_a_draw_of_distinct_pairs_when_there_are_many(self):
        module, (features, rows, teacher) = self.build(5), self.inputs(50)
        drawn = torch.randperm(50, generator=torch.Generator().manual_seed(3))[:5]
        expected = naive_info_nce(module.student_head(features[rows[drawn]]), module.teacher_head(teacher[drawn]), 0.07)
        found = module(features, rows, teacher, torch.Generator().manual_seed(3))
        assert found.loss.item() == pytest.approx(expected)

    def test_no_pairs_give_zero_and_zero_gradients(self):
        module, (features, rows, teacher) = self.build(5), self.inputs(0)
        module(features, rows, teacher).loss.backward()
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())

    def test_a_nan_shows_in_the_loss(self):
        module, (features, rows, teacher) = self.build(50), self.inputs(7)
        teacher[3, 1] = math.nan
        assert module(features, rows, teacher).loss.isnan()
