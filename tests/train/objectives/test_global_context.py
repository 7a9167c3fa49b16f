"""Scene tokens against HilDA's equation written as loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hilda_schema.errors import UsageError
from hilda_train.objectives.global_context import (
    GlobalContext,
    attention_pool,
    global_context_loss,
    teacher_scene_token,
)

SAMPLES, VIEWS, WIDTH, CHANNELS = 2, 3, 5, 4


def draw(seed: int, rows: int = 12, pairs: int = 20):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, CHANNELS, generator=generator, dtype=torch.float64)
    sample = torch.randint(SAMPLES, (rows,), generator=generator)
    tokens = torch.randn(SAMPLES, VIEWS, WIDTH, generator=generator, dtype=torch.float64)
    row = torch.randint(rows, (pairs,), generator=generator)
    camera = sample[row] * VIEWS + torch.randint(VIEWS, (pairs,), generator=generator)
    return features, sample, tokens, row, camera


def module(pooling: str = "max") -> GlobalContext:
    torch.manual_seed(0)
    return GlobalContext(nn.Linear(CHANNELS, WIDTH), CHANNELS, pooling).double()


def naive_max(rows: list[list[float]]) -> list[float]:
    return [max(column) for column in zip(*rows, strict=True)]


def naive_loss(pairs: list[tuple[list[float], list[float]]]) -> float:
    means = [sum((a - b) ** 2 for a, b in zip(k, q, strict=True)) / len(k) for k, q in pairs]
    return sum(means) / len(means) if means else 0.0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 12), absent=st.sets(st.integers(0, SAMPLES * VIEWS - 1)))
def test_max_pooling_equals_the_equation(seed, rows, absent):
    features, sample, tokens, row, camera = draw(seed, rows=rows)
    tokens.view(-1, WIDTH)[sorted(absent)] = math.nan
    context = module()
    term = context(features, sample, tokens, row, camera)
    projected, pairs = context.head(features), []
    for index in range(SAMPLES):
        points = projected[sample == index].tolist()
        views = [v for v in tokens[index].tolist() if not any(math.isnan(x) for x in v)]
        if points and views:
            pairs.append((naive_max(points), naive_max(views)))
    assert term.loss.item() == pytest.approx(naive_loss(pairs), rel=1e-9)
    assert term.logs["tokens"].item() == len(pairs)
    assert term.logs["squared_norm"].item() == pytest.approx(WIDTH * naive_loss(pairs), rel=1e-9)


def test_per_view_compares_each_camera_with_the_rows_that_it_sees():
    features, sample, tokens, row, camera = draw(seed=3)
    tokens[1, 2] = math.nan
    context = module("per_view")
    term = context(features, sample, tokens, row, camera)
    projected, pairs = context.head(features), []
    for index in range(SAMPLES * VIEWS):
        seen = projected[row[camera == index]].tolist()
        token = tokens.view(-1, WIDTH)[index].tolist()
        if seen and not math.isnan(token[0]):
            pairs.append((naive_max(seen), token))
    assert 2 <= len(pairs) < SAMPLES * VIEWS
    assert term.loss.item() == pytest.approx(naive_loss(pairs))


def test_attention_is_a_softmax_within_each_sample():
    features, sample, tokens, row, camera = draw(seed=4)
    context = module("attention")
    term = context(features, sample, tokens, row, camera)
    pairs = []
    for index in range(SAMPLES):
        mine = features[sample == index]
        weight = torch.softmax(context.score(mine)[:, 0], dim=0)
        pooled = (weight[:, None] * context.head(mine)).sum(dim=0)
        pairs.append((pooled.tolist(), naive_max(tokens[index].tolist())))
    assert term.loss.item() == pytest.approx(naive_loss(pairs))


def test_attention_survives_scores_that_overflow_an_exponential():
    rows = torch.eye(3)
    pooled = attention_pool(rows, torch.tensor([5000.0, 0.0, -5000.0]), torch.tensor([0, 0, 1]), 3)
    assert torch.equal(pooled, torch.stack((rows[0], rows[2], torch.zeros(3))))


@pytest.mark.parametrize("pooling", ["max", "attention", "per_view"])
def test_gradients_are_right_and_order_does_not_matter(pooling):
    features, sample, tokens, row, camera = draw(seed=5, rows=6, pairs=8)
    context = module(pooling)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: context(x, sample, tokens, row, camera).loss, features)
    order = torch.randperm(len(sample))
    moved = order.argsort()[row]
    shuffled = context(features[order], sample[order], tokens, moved, camera).loss
    torch.testing.assert_close(shuffled, context(features, sample, tokens, row, camera).loss)


def test_voxel_rows_and_repeated_point_rows_give_one_maximum():
    features, sample, tokens, row, camera = draw(seed=6)
    context = module()
    once = context(features, sample, tokens, row, camera).loss
    twice = context(features.repeat(3, 1), sample.repeat(3), tokens, row, camera).loss
    torch.testing.assert_close(once, twice)


def test_an_absent_camera_is_masked_but_a_damaged_token_is_not():
    tokens = torch.tensor([[[1.0, 2.0], [math.nan, math.nan]], [[1.0, math.nan], [0.0, 0.0]]])
    pooled, seen = teacher_scene_token(tokens)
    assert pooled[0].tolist() == [1.0, 2.0]
    assert pooled[1].isnan().tolist() == [False, True]
    assert seen.tolist() == [True, True]
    assert global_context_loss(torch.zeros(2, 2), pooled, seen).isnan()


@pytest.mark.parametrize("pooling", ["max", "attention", "per_view"])
def test_nothing_to_compare_gives_zero_and_zero_gradients(pooling):
    features, sample, tokens, row, camera = draw(seed=7)
    context = module(pooling)
    term = context(features, sample, tokens * math.nan, row, camera)
    term.loss.backward()
    assert (term.loss.item(), term.logs["tokens"].item()) == (0.0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in context.parameters())
    empty = context(features[:0], sample[:0], tokens, row[:0], camera[:0])
    assert empty.loss.item() == 0.0


def test_bfloat16_autocast_stays_close():
    features, sample, tokens, row, camera = draw(seed=8, rows=200)
    context = module().float()
    exact = context(features.float(), sample, tokens.float(), row, camera).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = context(features.float(), sample, tokens.float(), row, camera).loss
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_unknown_pooling_is_refused():
    with pytest.raises(UsageError, match="max, attention, per_view"):
        GlobalContext(nn.Identity(), 4, "mean")
