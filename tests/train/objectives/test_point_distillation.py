"""Point distillation against HilDA's equation written as loops, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_schema.errors import UsageError
from hilda_train.objectives.heads import ProjectionHead
from hilda_train.objectives.point_distillation import PointDistillation, pair_distance, point_distillation_loss

DISTANCES = ["cosine", "centred_cosine", "norm", "l2", "kl"]


def naive_distance(k: list[float], q: list[float], distance: str) -> float:
    """One pair, in plain Python."""
    if distance == "centred_cosine":
        k, q = [x - sum(k) / len(k) for x in k], [x - sum(q) / len(q) for x in q]
    k_length, q_length = (math.sqrt(sum(x * x for x in v)) for v in (k, q))
    if distance in {"cosine", "centred_cosine"}:
        return 1 - sum(a * b for a, b in zip(k, q, strict=True)) / (k_length * q_length)
    if distance == "norm":
        return math.sqrt(sum((a / k_length - b / q_length) ** 2 for a, b in zip(k, q, strict=True)))
    if distance == "l2":
        return sum((a - b) ** 2 for a, b in zip(k, q, strict=True)) / len(k)
    soft_k, soft_q = ([math.exp(x) / sum(math.exp(y) for y in v) for x in v] for v in (k, q))
    return sum(b * math.log(b / a) for a, b in zip(soft_k, soft_q, strict=True))


def naive_loss(student, teacher, camera, cameras, distance):
    means = []
    for index in range(cameras):
        pairs = [i for i, c in enumerate(camera.tolist()) if c == index]
        if pairs:
            values = [naive_distance(student[i].tolist(), teacher[i].tolist(), distance) for i in pairs]
            means.append(sum(values) / len(values))
    return (sum(means) / len(means) if means else 0.0), len(means)


def draw(seed: int, pairs: int = 11, width: int = 6, cameras: int = 4):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, pairs, width, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(cameras, (pairs,), generator=generator)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    pairs=st.integers(0, 15),
    cameras=st.integers(1, 7),
    distance=st.sampled_from(DISTANCES),
)
def test_loss_equals_the_equation(seed, pairs, cameras, distance):
    student, teacher, camera = draw(seed, pairs=pairs, cameras=cameras)
    loss, present = point_distillation_loss(student, teacher, camera, cameras, distance)
    expected, count = naive_loss(student, teacher, camera, cameras, distance)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert present.item() == count


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_are_right(distance):
    student, teacher, camera = draw(seed=2, pairs=5, width=4, cameras=3)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: point_distillation_loss(x, teacher, camera, 3, distance)[0], student)


def test_scalr_norm_is_a_function_of_the_cosine():
    student, teacher, _ = draw(seed=3)
    torch.testing.assert_close(
        pair_distance(student, teacher, "norm"), (2 * pair_distance(student, teacher, "cosine")).sqrt()
    )


@pytest.mark.parametrize("distance", ["cosine", "centred_cosine", "norm"])
def test_length_of_either_side_does_not_matter(distance):
    student, teacher, _ = draw(seed=4)
    torch.testing.assert_close(
        pair_distance(student, teacher, distance), pair_distance(37.0 * student, 0.01 * teacher, distance)
    )


def test_centred_cosine_ignores_a_shift_of_all_channels():
    student, teacher, _ = draw(seed=5)
    shifted = pair_distance(student + 3.0, teacher - 8.0, "centred_cosine")
    torch.testing.assert_close(pair_distance(student, teacher, "centred_cosine"), shifted)
    plain = pair_distance(student, teacher, "cosine")
    assert not torch.allclose(plain, pair_distance(student + 3.0, teacher, "cosine"))


def test_order_of_pairs_does_not_matter():
    student, teacher, camera = draw(seed=6)
    order = torch.randperm(len(camera))
    first, _ = point_distillation_loss(student, teacher, camera, 4)
    second, _ = point_distillation_loss(student[order], teacher[order], camera[order], 4)
    torch.testing.assert_close(first, second)


def test_every_camera_counts_the_same_however_many_pairs_it_has():
    teacher = torch.tensor([[1.0, 0.0]]).expand(101, 2)
    student = teacher.clone()
    student[0] = torch.tensor([0.0, 1.0])  # the only pair of camera 0, at distance 1; camera 1 is perfect
    camera = torch.tensor([0] + [1] * 100)
    assert point_distillation_loss(student, teacher, camera, 2)[0].item() == pytest.approx(0.5)
    # One group is ScaLR's mean over all pairs.
    everything = point_distillation_loss(student, teacher, torch.zeros_like(camera), 1)[0]
    assert everything.item() == pytest.approx(1 / 101)


def test_cameras_without_pairs_do_not_count():
    student, teacher, camera = draw(seed=7, cameras=2)
    few, _ = point_distillation_loss(student, teacher, camera, 2)
    many, present = point_distillation_loss(student, teacher, camera * 3, 12)
    torch.testing.assert_close(few, many)
    assert present.item() == 2


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_and_zero_vectors_have_finite_gradients(distance):
    teacher = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    student = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss, _ = point_distillation_loss(student, teacher, torch.tensor([0, 0]), 1, distance)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_nan_in_one_pair_shows_in_the_loss(distance, side):
    student, teacher, camera = draw(seed=8)
    (student if side == "student" else teacher)[3, 2] = math.nan
    assert point_distillation_loss(student, teacher, camera, 4, distance)[0].isnan()


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_are_taken_in_float32_under_autocast(distance):
    student, teacher = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(9))
    with torch.autocast("cpu", torch.bfloat16):
        inside = pair_distance(student, teacher, distance)
    assert torch.equal(inside, pair_distance(student, teacher, distance))


def test_unknown_distance_is_refused():
    with pytest.raises(UsageError, match="cosine"):
        pair_distance(torch.zeros(1, 2), torch.zeros(1, 2), "manhattan")


class TestModule:
    def build(self):
        torch.manual_seed(0)
        heads = [ProjectionHead(4, 6, hidden=5), ProjectionHead(3, 8, hidden=5)]
        return PointDistillation(heads).double()

    def inputs(self, pairs: int = 9):
        generator = torch.Generator().manual_seed(1)
        features = [torch.randn(n, c, generator=generator, dtype=torch.float64) for n, c in ((7, 4), (5, 3))]
        rows = [torch.randint(n, (pairs,), generator=generator) for n in (7, 5)]
        teacher = [torch.randn(pairs, d, generator=generator, dtype=torch.float64) for d in (6, 8)]
        return features, rows, teacher, torch.randint(3, (pairs,), generator=generator), 3

    def test_is_the_mean_over_layers_each_with_its_own_head(self):
        module = self.build()
        features, rows, teacher, camera, cameras = self.inputs()
        term = module(features, rows, teacher, camera, cameras)
        expected = [
            naive_loss(head(feature)[row], target, camera, cameras, "cosine")[0]
            for head, feature, row, target in zip(module.heads, features, rows, teacher, strict=True)
        ]
        assert term.loss.item() == pytest.approx(sum(expected) / 2)
        assert [term.logs["layer_0"].item(), term.logs["layer_1"].item()] == pytest.approx(expected)
        assert not any(value.requires_grad for value in term.logs.values())

    def test_points_of_one_voxel_may_share_its_row(self):
        module = self.build()
        features, rows, teacher, camera, cameras = self.inputs()
        by_point = [feature[row] for feature, row in zip(features, rows, strict=True)]
        each = [torch.arange(len(camera))] * 2
        by_voxel = module(features, rows, teacher, camera, cameras).loss
        torch.testing.assert_close(by_voxel, module(by_point, each, teacher, camera, cameras).loss)

    def test_no_pairs_give_zero_and_a_zero_gradient_for_every_parameter(self):
        module = self.build()
        features, rows, teacher, camera, cameras = self.inputs(pairs=0)
        features[0].requires_grad_()
        term = module(features, rows, teacher, camera, cameras)
        term.loss.backward()
        assert (term.loss.item(), term.logs["cameras"].item()) == (0.0, 0)
        gradients = [features[0].grad, *(p.grad for p in module.parameters())]
        assert all(g is not None and not g.any() for g in gradients)

    def test_a_layer_too_few_is_an_error(self):
        module = self.build()
        features, rows, teacher, camera, cameras = self.inputs()
        with pytest.raises(ValueError, match="shorter"):
            module(features[:1], rows, teacher, camera, cameras)

    def test_bfloat16_autocast_stays_close_and_the_loss_is_float32(self):
        module = self.build().float()
        features, rows, teacher, camera, cameras = self.inputs(pairs=200)
        features, teacher = [f.float() for f in features], [t.float() for t in teacher]
        exact = module(features, rows, teacher, camera, cameras).loss
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module(features, rows, teacher, camera, cameras).loss
        assert rounded.dtype == torch.float32
        assert rounded.item() == pytest.approx(exact.item(), rel=0.01)
