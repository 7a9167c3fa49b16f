"""Cells of labelled sweeps against a naive walk along the rays; scores by hand; a head that can only succeed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from hilda_train.evaluate.heads.items import Item, rows_after
from hilda_train.evaluate.heads.protocol import BevConfig, load_head_protocol
from hilda_train.evaluate.semantic_occupancy.head import OccupancyHead, OccupancyTarget
from hilda_train.evaluate.semantic_occupancy.labels import UNKNOWN, semantic_occupancy
from hilda_train.evaluate.semantic_occupancy.protocol import OccupancyProtocol
from hilda_train.evaluate.semantic_occupancy.task import StepScore
from hilda_train.objectives.bev import BevGrid
from hilda_train.students.points import PointBatch

GRID, LAYERS, CLASSES, FREE = BevGrid(8.0, 1.0, -2.0, 2.0), 4, 3, 3


def cells(xyz, label, origin=(0.0, 0.0, 0.0), **options):
    return semantic_occupancy(
        torch.tensor(xyz).reshape(-1, 3), torch.tensor(label), torch.tensor(origin), GRID, LAYERS, CLASSES, **options
    )


def naive(xyz, label, origin, min_range_m):
    """Fine steps along every ray."""
    result = np.full((LAYERS, 16, 16), UNKNOWN)

    def cell(point):
        row, column, layer = (int(np.floor(v)) for v in (point[0] + 8, point[1] + 8, point[2] + 2))
        inside = 0 <= row < 16 and 0 <= column < 16 and 0 <= layer < LAYERS
        return (layer, row, column) if inside else None

    returns = [(p, c) for p, c in zip(xyz, label, strict=True) if np.hypot(*(p - origin)[:2]) >= min_range_m]
    for point, _ in returns:
        length = np.linalg.norm(point - origin)
        for along in np.arange(0.01, length - 1.0, 0.02):
            if (at := cell(origin + (point - origin) * along / length)) is not None:
                result[at] = FREE
    votes = {}
    for point, c in returns:
        if (at := cell(point)) is not None:
            votes.setdefault(at, Counter())[c] += 1
    for at, counter in votes.items():
        counted = {c: n for c, n in counter.items() if c >= 0}
        result[at] = min(counted, key=lambda c: (-counted[c], c)) if counted else UNKNOWN
    return result


def test_cells_are_those_of_a_naive_walk_along_the_rays():
    rng = np.random.default_rng(0)
    xyz = rng.uniform([-12, -12, -3], [12, 12, 3], (120, 3))
    label = rng.integers(-1, 3, 120)
    origin = np.array([0.3, -0.2, 0.4])
    found = cells(xyz, label, origin, min_range_m=2.5).numpy()
    expected = naive(xyz, label, origin, 2.5)
    filled = (expected != FREE) & (expected != UNKNOWN)
    assert filled.sum() >= 20
    np.testing.assert_array_equal(found[filled], expected[filled])
    # coarser steps along the rays may miss a corner that a ray cuts, and find none that it does not cut
    free, wanted = found == FREE, expected == FREE
    assert not (free & ~wanted).any()
    assert (free & wanted).sum() > 0.85 * wanted.sum()


def test_the_majority_wins_and_what_has_no_class_is_not_free():
    at = [[3.5, 0.5, 0.5]]
    assert cells(at * 3, [1, 2, 2])[2, 11, 8] == 2
    assert cells(at * 2, [2, 1])[2, 11, 8] == 1  # a tie: the first class
    behind = [[7.5, 0.5, 0.5]]
    seen = cells(at + behind, [-1, 0], (0.5, 0.5, 0.5))
    assert seen[2, 11, 8] == UNKNOWN
    assert seen[2, 15, 8] == 0
    assert seen[2, 9, 8] == seen[2, 13, 8] == FREE
    assert seen[2, 8, 12] == UNKNOWN


def test_the_vehicles_own_body_says_nothing():
    near = cells([[1.0, 0.0, 0.5]], [1], min_range_m=2.5)
    assert (near == UNKNOWN).all()
    assert (cells(np.zeros((0, 3)), np.zeros(0, np.int64)) == UNKNOWN).all()


def test_scores_by_hand():
    step = StepScore(2)
    truth = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, UNKNOWN]).view(1, 3, 3)
    predicted = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0, 0]).view(1, 3, 3)
    step.add(truth.to(torch.int8), predicted.to(torch.int8))
    assert step.iou == pytest.approx([2 / 4, 1 / 3])
    assert step.miou == pytest.approx((1 / 2 + 1 / 3) / 2)
    # five cells are occupied, four of them said to be, and one that is free is said to be
    assert step.occupied_iou == pytest.approx(4 / 6)
    assert np.isnan(StepScore(2).miou)
    assert np.isnan(StepScore(2).occupied_iou)


def test_frames_after_and_before_are_found_by_time_within_their_scene(toy_cache):
    from hilda_schema import open_cache

    cache = open_cache(toy_cache)  # two scenes of five frames, 0.1 s apart
    rows = rows_after(cache, [-0.1, 0.1, 0.3], 0.1)
    scenes, stamps = cache.frames["scene"].to_pylist(), cache.frames["stamp_ns"].to_pylist()
    for row, (before, after, later) in enumerate(rows):
        for found, offset in ((before, -0.1), (after, 0.1), (later, 0.3)):
            near = [
                k for k in range(len(cache))
                if scenes[k] == scenes[row] and abs(stamps[k] - stamps[row] - offset * 1e9) <= 0.03e9
            ]  # fmt: skip
            assert found == (near[0] if near else None)
    assert sum(later is None for _, _, later in rows) == 6


def test_a_head_that_is_told_what_fills_the_cells_says_it(echo, overfit):
    torch.manual_seed(0)
    protocol = load_head_protocol(OccupancyProtocol, "hilda_train.evaluate.semantic_occupancy", "quick", ())
    update = {"bev": BevConfig(range_m=8.0, cell_m=1.0, channels=32, blocks=0 + 1), "horizon": 1, "layers": LAYERS}
    model = OccupancyHead(echo(LAYERS * 4), CLASSES, protocol.model_copy(update=update), frozen=True)
    rng = torch.Generator().manual_seed(0)
    items = []
    for _ in range(2):
        now = torch.randint(-1, 4, (LAYERS, 16, 16), generator=rng)
        # a point in the middle of every cell of the map, which says what fills its column
        said = torch.nn.functional.one_hot(now.clamp(min=0), 4).float() * (now >= 0)[..., None]
        feats = said.permute(1, 2, 0, 3).reshape(256, -1)
        xyz_m = torch.cat((GRID.centres_m().view(-1, 2), torch.zeros((256, 1))), dim=1)
        both = PointBatch.cat([PointBatch.single(xyz_m, torch.zeros_like(feats)), PointBatch.single(xyz_m, feats)])
        target = OccupancyTarget(torch.stack([now, (now + 1) % 4 * (now >= 0) - (now < 0).long()]).to(torch.int8))
        items.append(Item("toy/s/f", both, torch.eye(4).repeat(2, 1, 1), target))
    seen = model.see(items, torch.device("cpu"))
    overfit(model, seen, 200)
    for step in range(2):
        score = StepScore(CLASSES)
        for each in seen:
            score.add(each.target.cells[step], model.predict(each)[step])
        assert score.miou > 0.97
        assert score.occupied_iou > 0.98
