"""The plain-decoder control arm."""

import math

import pytest
import torch

from hilda_train.objectives.bev import OCCUPIED, UNOBSERVED, BevGrid, BevHistory, SweepFeatures
from hilda_train.objectives.occupancy_bce import OccupancyBce, occupancy_bce_loss
from hilda_train.objectives.unet2d import UNet2d


def draw(seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(3, (2, 4, 5), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("occupied_weight", [1.0, 5.0])
def test_loss_equals_the_equation(occupied_weight):
    logits, target = draw(seed=0)
    total = weights = 0.0
    for logit, state in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        if state == UNOBSERVED:
            continue
        probability = 1 / (1 + math.exp(-logit))
        weight = occupied_weight if state == OCCUPIED else 1.0
        total -= weight * math.log(probability if state == OCCUPIED else 1 - probability)
        weights += weight
    assert occupancy_bce_loss(logits, target, occupied_weight).item() == pytest.approx(total / weights)


def test_gradients_are_right_and_unobserved_cells_have_none():
    logits, target = draw(seed=1)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: occupancy_bce_loss(x, target, 5.0), logits)
    occupancy_bce_loss(logits, target, 5.0).backward()
    assert torch.equal(logits.grad != 0, target != UNOBSERVED)


def test_nothing_observed_gives_zero():
    logits, target = draw(seed=2)
    assert occupancy_bce_loss(logits, torch.full_like(target, UNOBSERVED), 5.0).item() == 0.0


def test_the_decoder_learns_from_the_history_map_and_reports_its_score():
    torch.manual_seed(0)
    grid = BevGrid(range_m=4.0, cell_m=1.0)
    module = OccupancyBce(BevHistory(2, 4, grid), UNet2d(4, base=8, multipliers=(1, 2), blocks=1))
    xyz_m = torch.tensor([[0.5, 0.5, 0.0], [-2.5, 1.5, 0.0]])
    sweep = SweepFeatures(torch.ones(2, 2, requires_grad=True), xyz_m, torch.zeros(2, dtype=torch.long))
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[0, 4, 4] = target[0, 1, 5] = OCCUPIED
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(60):
        term = module([sweep, sweep], target)
        optimizer.zero_grad()
        term.loss.backward()
        optimizer.step()
    assert sweep.features.grad.any()
    assert term.logs["iou"].item() == 1.0
    assert torch.equal(module.predict([sweep, sweep], 1) > 0, target == OCCUPIED)
