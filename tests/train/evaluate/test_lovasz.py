"""The loss against the definition of a Lovász extension, evaluated naively in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilda_train.evaluate.lovasz import _increments, lovasz_softmax


def jaccard_loss(own, mispredicted):
    """Delta(M) of a set of mispredicted points."""
    union = np.count_nonzero(own | mispredicted)
    return np.count_nonzero(mispredicted) / union if union else 0.0


def naive(probabilities, target):
    """Mean over the classes that occur of the integral of Delta({m >= t}) over t: what a Lovász extension is.

    The set is constant between two neighbouring values of m; it is built anew, point by point, for each.
    """
    losses = []
    for c in np.unique(target):
        own = target == c
        m = np.where(own, 1 - probabilities[:, c], probabilities[:, c])
        levels = np.unique(np.append(m, 0.0))
        losses.append(sum((b - a) * jaccard_loss(own, m >= b) for a, b in itertools.pairwise(levels)))
    return float(np.mean(losses))


@st.composite
def cases(draw):
    """Probabilities and classes; with few distinct values, so that errors tie."""
    n, k = draw(st.integers(1, 25)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.integers(1, 4, (n, k)) if draw(st.booleans()) else rng.random((n, k)) + 1e-3
    return weights / weights.sum(1, keepdims=True), rng.integers(0, k, n)


@given(cases())
def test_it_is_the_lovasz_extension_of_the_jaccard_loss(case):
    probabilities, target = case
    found = lovasz_softmax(torch.from_numpy(probabilities), torch.from_numpy(target))
    assert float(found) == pytest.approx(naive(probabilities, target), abs=1e-12)


@given(cases())
def test_on_hard_predictions_it_is_the_jaccard_loss_itself(case):
    probabilities, target = case
    predicted = probabilities.argmax(1)
    hard = torch.nn.functional.one_hot(torch.from_numpy(predicted), probabilities.shape[1]).double()
    expected = [1 - ((predicted == c) & (target == c)).sum() / ((predicted == c) | (target == c)).sum()
                for c in np.unique(target)]  # fmt: skip
    assert float(lovasz_softmax(hard, torch.from_numpy(target))) == pytest.approx(np.mean(expected))


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((12, 4), generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (12,), generator=generator)  # class 3 does not occur
    assert torch.autograd.gradcheck(lambda x: lovasz_softmax(x.softmax(1), target), logits)


def test_increments_keep_their_digits_in_float32_among_many_points():
    """The published code subtracts neighbouring Jaccard values, of which float32 leaves little here."""
    rng = np.random.default_rng(0)
    own = torch.from_numpy(rng.random((100_000, 1)) < 0.3)

    def subtracted(own):
        size = own.sum(dim=0)
        jaccard = 1 - (size - own.cumsum(dim=0)) / (size + (1 - own).cumsum(dim=0))
        return torch.cat([jaccard[:1], jaccard.diff(dim=0)])

    def worst(increments):
        exact = subtracted(own.double())
        wrong = (increments.double() - exact).abs() / exact.abs()
        return float(wrong[exact > 1e-9].max())  # where float64 itself has digits left

    assert worst(_increments(own.float())) < 1e-5
    assert worst(subtracted(own.float())) > 0.1


def test_nothing_costs_nothing():
    empty = torch.zeros((0, 3))
    assert float(lovasz_softmax(empty, torch.zeros(0, dtype=torch.int64))) == 0
