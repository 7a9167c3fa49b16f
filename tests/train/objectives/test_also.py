"""ALSO's queries, its neighbour search and its losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_train.objectives.also import Also, Queries, also_loss, radius_pairs, sample_queries


def cloud(seed: int, points: int = 400):
    return torch.randn(points, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 8


class TestQueries:
    origin_m = torch.tensor([0.5, -1.0, 1.8], dtype=torch.float64)

    def draw(self, count: int = 200, margin_m: float = 0.1):
        xyz_m = cloud(0)
        queries = sample_queries(xyz_m, self.origin_m, count, margin_m, torch.Generator().manual_seed(1))
        ray = xyz_m[queries.source] - self.origin_m
        length = ray.norm(dim=1)
        way = queries.xyz_m - self.origin_m
        along = (way * ray).sum(dim=1) / length
        return queries, way, along, length

    def test_every_query_lies_on_its_ray(self):
        _, way, along, _ = self.draw()
        torch.testing.assert_close(way.norm(dim=1), along)

    def test_occupied_ones_lie_just_behind_the_return_free_ones_before_it(self):
        queries, _, along, length = self.draw(margin_m=0.3)
        beyond = along - length
        near_free = queries.near & ~queries.occupied
        assert ((beyond >= -1e-9) & (beyond <= 0.3))[queries.occupied].all()
        assert ((beyond <= 1e-9) & (beyond >= -0.3))[near_free].all()
        assert beyond[queries.occupied].max() > 0.25
        assert ((along >= 0) & (beyond <= 1e-9))[~queries.near].all()
        # "far" is spread over the whole way.
        share = (along / length)[~queries.near]
        assert 0.4 < share.mean() < 0.6

    def test_kinds_share_the_count(self):
        queries, *_ = self.draw(count=200)
        assert int(queries.occupied.sum()) == 68
        assert int((queries.near & ~queries.occupied).sum()) == int((~queries.near).sum()) == 66
        assert not (queries.occupied & ~queries.near).any()

    def test_few_returns_give_few_queries_and_none_give_none(self):
        assert len(sample_queries(cloud(1, points=5), self.origin_m, 200).source) == 15
        assert len(sample_queries(cloud(1, points=0), self.origin_m, 200).source) == 0

    def test_a_return_at_the_sensor_is_finite_and_never_passed_through_it(self):
        near = self.origin_m + torch.tensor([[0.0, 0.0, 0.0], [0.01, 0.0, 0.0]], dtype=torch.float64)
        queries = sample_queries(near, self.origin_m, 6, margin_m=0.5)
        assert queries.xyz_m.isfinite().all()
        assert (queries.xyz_m[:, 0] >= self.origin_m[0] - 1e-12).all()


class TestRadiusPairs:
    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 1000), queries=st.integers(0, 20), supports=st.integers(0, 60))
    def test_equals_all_distances(self, seed, queries, supports):
        generator = torch.Generator().manual_seed(seed)
        query_m, support_m = ((torch.rand(n, 3, generator=generator) - 0.5) * 6 for n in (queries, supports))
        query_sample, support_sample = (torch.randint(2, (n,), generator=generator) for n in (queries, supports))
        found = radius_pairs(query_m, query_sample, support_m, support_sample, 1.0, limit=1000)
        close = (query_m[:, None] - support_m[None]).norm(dim=2) <= 1.0
        expected = (close & (query_sample[:, None] == support_sample[None])).nonzero().tolist()
        assert sorted(torch.stack(found, dim=1).tolist()) == expected
        assert found[0].tolist() == sorted(found[0].tolist())

    def test_limit_keeps_a_random_choice_of_each_query(self):
        support_m, zero = torch.rand(50, 3) * 0.1, torch.zeros(50, dtype=torch.long)
        query_m = torch.zeros(2, 3)
        draws = []
        for seed in range(5):
            query, support = radius_pairs(
                query_m, zero[:2], support_m, zero, 1.0, limit=8, generator=torch.Generator().manual_seed(seed)
            )
            assert torch.bincount(query).tolist() == [8, 8]
            assert len(set(support[query == 0].tolist())) == 8
            draws.append(tuple(support.tolist()))
        assert len(set(draws)) == 5

    def test_kilometres_apart_is_no_wrap_around(self):
        far = torch.tensor([[0.0, 0.0, 0.0], [1e4, 0.0, 0.0], [0.0, 1e4, 0.0], [0.0, 0.0, 1e4]])
        zero = torch.zeros(4, dtype=torch.long)
        query, support = radius_pairs(far, zero, far, zero, 1.0, limit=10)
        assert torch.equal(query, support)


def test_losses_equal_the_equations():
    prediction = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    occupied = torch.arange(9) % 3 == 0
    near = torch.arange(9) % 2 == 0
    intensity = torch.rand(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bce, l1 = also_loss(prediction, occupied, intensity, near)
    terms = [
        -math.log(p if o else 1 - p)
        for p, o in zip(torch.sigmoid(prediction[:, 0]).tolist(), occupied.tolist(), strict=True)
    ]
    assert bce.item() == pytest.approx(sum(terms) / 9)
    gaps = [abs(prediction[i, 1] - intensity[i]).item() for i in range(9) if near[i]]
    assert l1.item() == pytest.approx(sum(gaps) / len(gaps))
    inputs = prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: also_loss(x, occupied, intensity, near), inputs)


class TestModule:
    def build(self, **options):
        torch.manual_seed(0)
        return Also(3, hidden=8, **options).double()

    def inputs(self):
        xyz_m = cloud(2, points=80) / 8
        features = torch.randn(80, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        sample = torch.arange(80) // 40
        queries, query_sample = [], []
        for index in range(2):
            mine = (sample == index).nonzero().flatten()
            drawn = sample_queries(xyz_m[mine], torch.zeros(3, dtype=torch.float64), 12)
            queries.append(drawn._replace(source=mine[drawn.source]))
            query_sample += [index] * len(drawn.source)
        joined = Queries(*(torch.cat(fields) for fields in zip(*queries, strict=True)))
        intensity = torch.rand(80, dtype=torch.float64)[joined.source]
        return features, xyz_m, sample, joined, torch.tensor(query_sample), intensity

    def test_every_support_answers_for_itself(self):
        module, inputs = self.build(supports=1000, intensity_weight=0.5), self.inputs()
        features, xyz_m, sample, queries, query_sample, intensity = inputs
        term = module(*inputs)
        bce, l1 = [], []
        for q in range(len(query_sample)):
            for m in range(len(xyz_m)):
                offset = queries.xyz_m[q] - xyz_m[m]
                if sample[m] != query_sample[q] or offset.norm() > 1.0:
                    continue
                logit, guess = module.decoder(torch.cat((module.latent(features[m]), offset))).tolist()
                probability = 1 / (1 + math.exp(-logit))
                bce.append(-math.log(probability if queries.occupied[q] else 1 - probability))
                if queries.near[q]:
                    l1.append(abs(guess - intensity[q].item()))
        assert len(bce) > 50
        assert term.logs["pairs"].item() == len(bce)
        assert term.loss.item() == pytest.approx(sum(bce) / len(bce) + 0.5 * sum(l1) / len(l1))

    def test_the_latent_decides_so_gradients_reach_the_student(self):
        module, inputs = self.build(), self.inputs()
        features = inputs[0].clone().requires_grad_()
        module(features, *inputs[1:]).loss.backward()
        assert features.grad.isfinite().all()
        assert features.grad.any()

    def test_no_queries_give_zero_and_zero_gradients(self):
        module, (features, xyz_m, sample, queries, query_sample, intensity) = self.build(), self.inputs()
        none = Queries(*(field[:0] for field in queries))
        module(features, xyz_m, sample, none, query_sample[:0], intensity[:0]).loss.backward()
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())

    def test_a_nan_feature_shows_in_the_loss(self):
        module, inputs = self.build(supports=1000), self.inputs()
        inputs[0][inputs[3].source[0]] = math.nan
        assert module(*inputs).loss.isnan()

    def test_bfloat16_autocast_stays_close(self):
        module = self.build(supports=1000).float()
        inputs = self.inputs()
        queries = inputs[3]._replace(xyz_m=inputs[3].xyz_m.float())
        single = (inputs[0].float(), inputs[1].float(), inputs[2], queries, inputs[4], inputs[5].float())
        exact = module(*single).loss
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module(*single).loss
        assert rounded.dtype == torch.float32
        assert rounded.item() == pytest.approx(exact.item(), rel=0.01)
