"""Relational losses against loops, and the stratified draw's promises."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_train.objectives.point_distillation import point_distillation_loss
from hilda_train.objectives.relational import relational_loss, stratified_pairs


def draw(seed: int, sizes: tuple[int, ...] = (4, 1, 6), width: int = 5):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, sum(sizes), width, generator=generator, dtype=torch.float64)
    camera = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long))
    return student, teacher, camera


def naive_terms(student, teacher, camera, *, diagonal):
    def unit(row):
        length = math.sqrt(sum(x * x for x in row))
        return [x / length for x in row]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    cross, intra = [], []
    for index in sorted(set(camera.tolist())):
        rows = (camera == index).nonzero().flatten().tolist()
        k, q = [unit(student[i].tolist()) for i in rows], [unit(teacher[i].tolist()) for i in rows]
        n = len(rows)
        if n < 2:
            continue
        others = [(i, j) for i in range(n) for j in range(n) if i != j]
        cross.append(sum(abs(dot(k[i], q[j]) - dot(q[i], q[j])) for i, j in others) / (n * n - n))
        if diagonal:
            cross[-1] += sum(abs(dot(k[i], q[i]) - dot(q[i], q[i])) for i in range(n)) / n
        intra.append(sum(abs(dot(k[i], k[j]) - dot(q[i], q[j])) for i, j in others) / (n * n - n))
    return sum(cross) / len(cross), sum(intra) / len(intra), len(cross)


@pytest.mark.parametrize("diagonal", [True, False])
def test_loss_equals_the_equations(diagonal):
    inputs = draw(seed=1)
    term = relational_loss(*inputs, cross_weight=2.0, intra_weight=0.5, diagonal=diagonal)
    cross, intra, cameras = naive_terms(*inputs, diagonal=diagonal)
    assert term.loss.item() == pytest.approx(2.0 * cross + 0.5 * intra)
    assert (term.logs["cross"].item(), term.logs["intra"].item()) == (pytest.approx(cross), pytest.approx(intra))
    assert term.logs["cameras"].item() == cameras == 2


def test_the_diagonal_is_the_cosine_distance():
    student, teacher, camera = draw(seed=2, sizes=(5, 7))
    with_diagonal, without = (relational_loss(student, teacher, camera, diagonal=d).loss for d in (True, False))
    torch.testing.assert_close(with_diagonal - without, point_distillation_loss(student, teacher, camera, 2)[0])


def test_a_rotation_of_the_student_changes_the_cross_term_but_not_the_intra_term():
    student, teacher, camera = draw(seed=3)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    before, after = relational_loss(student, teacher, camera), relational_loss(student @ rotation, teacher, camera)
    torch.testing.assert_close(before.logs["intra"], after.logs["intra"])
    assert not torch.allclose(before.logs["cross"], after.logs["cross"])


def test_gradients_are_right_and_lengths_do_not_matter():
    student, teacher, camera = draw(seed=4, sizes=(3, 2))
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: relational_loss(x, teacher, camera).loss, student)
    scaled = relational_loss(5 * student, 0.2 * teacher, camera).loss
    torch.testing.assert_close(scaled, relational_loss(student, teacher, camera).loss)


@pytest.mark.parametrize("sizes", [(), (1,), (1, 1)])
def test_too_few_pairs_give_zero_and_a_zero_gradient(sizes):
    student, teacher, camera = draw(seed=5, sizes=sizes)
    student.requires_grad_()
    term = relational_loss(student, teacher, camera)
    term.loss.backward()
    assert (term.loss.item(), term.logs["cameras"].item()) == (0.0, 0)
    assert not student.grad.any()


def test_matrices_are_float32_under_autocast():
    student, teacher, camera = (x.float() if x.is_floating_point() else x for x in draw(seed=6, sizes=(40, 30)))
    with torch.autocast("cpu", torch.bfloat16):
        inside = relational_loss(student, teacher, camera).loss
    assert torch.equal(inside, relational_loss(student, teacher, camera).loss)


def test_a_nan_shows_in_the_loss():
    student, teacher, camera = draw(seed=7)
    student[0, 0] = math.nan
    assert relational_loss(student, teacher, camera).loss.isnan()


def tile_of(uv01) -> list[tuple[int, int]]:
    return [(min(int(v * 4), 3), min(int(u * 8), 7)) for u, v in uv01.tolist()]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), pairs=st.integers(0, 300), per_camera=st.integers(1, 80))
def test_every_tile_gives_as_many_as_every_other_while_it_has_any(seed, pairs, per_camera):
    generator = torch.Generator().manual_seed(seed)
    # Crowded at the bottom, as a road is.
    uv01 = torch.rand(pairs, 2, generator=generator)
    uv01[:, 1] = uv01[:, 1] ** 0.2
    camera = torch.randint(3, (pairs,), generator=generator)
    drawn = stratified_pairs(uv01, camera, per_camera, generator)
    assert len(set(drawn.tolist())) == len(drawn)
    assert camera[drawn].tolist() == sorted(camera[drawn].tolist())
    for index in range(3):
        mine = camera == index
        had = Counter(tile_of(uv01[mine]))
        gave = Counter(tile_of(uv01[drawn[camera[drawn] == index]]))
        assert sum(gave.values()) == min(per_camera, int(mine.sum()))
        most = max(gave.values(), default=0)
        assert all(gave[tile] in {most - 1, most} or gave[tile] == had[tile] for tile in had)


def test_the_draw_is_random_repeatable_and_fair_to_the_last_round():
    uv01 = torch.cartesian_prod(torch.arange(8) / 8 + 0.05, torch.arange(4) / 4 + 0.05).repeat(3, 1)
    camera = torch.zeros(len(uv01), dtype=torch.long)
    draws = [stratified_pairs(uv01, camera, 4, torch.Generator().manual_seed(seed)).tolist() for seed in range(60)]
    assert draws[0] == stratified_pairs(uv01, camera, 4, torch.Generator().manual_seed(0)).tolist()
    rows = Counter(tile_of(uv01)[pair][0] for pairs in draws for pair in pairs)
    # 240 draws over 4 rows of tiles: 60 expected, 4.5 standard deviations are 30.
    assert all(30 < rows[row] < 90 for row in range(4))
