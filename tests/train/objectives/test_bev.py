"""The grid, the sparse collapse against a dense one, and the scores."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hilda_schema.errors import UsageError
from hilda_train.objectives.bev import (
    FREE,
    OCCUPIED,
    UNOBSERVED,
    BevGrid,
    BevHistory,
    SweepFeatures,
    occupancy_scores,
)

GRID = BevGrid(range_m=4.0, cell_m=1.0)


def sweep(seed: int, rows: int = 30, samples: int = 2, channels: int = 3) -> SweepFeatures:
    generator = torch.Generator().manual_seed(seed)
    xyz_m = torch.rand(rows, 3, generator=generator, dtype=torch.float64) * 10 - 5  # some outside the square
    features = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    return SweepFeatures(features, xyz_m, torch.randint(samples, (rows,), generator=generator))


def dense_scatter(sweep: SweepFeatures, samples: int, grid: BevGrid):
    """(S, 2 C + 1, H, W): mean, maximum, mask; cell by cell."""
    channels = sweep.features.shape[1]
    out = torch.zeros(samples, 2 * channels + 1, grid.cells, grid.cells, dtype=torch.float64)
    for s, row, column in itertools.product(range(samples), range(grid.cells), range(grid.cells)):
        x, y = sweep.xyz_m[:, 0], sweep.xyz_m[:, 1]
        low_x, low_y = -grid.range_m + row * grid.cell_m, -grid.range_m + column * grid.cell_m
        here = (sweep.sample == s) & (x >= low_x) & (x < low_x + grid.cell_m)
        here &= (y >= low_y) & (y < low_y + grid.cell_m)
        if here.any():
            mine = sweep.features[here]
            out[s, :, row, column] = torch.cat((mine.mean(0), mine.max(0).values, torch.ones(1)))
    return out


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(0, 40))
def test_history_equals_a_dense_scatter_and_a_1x1_convolution(seed, rows):
    torch.manual_seed(seed)
    history = BevHistory(channels=3, history_channels=5, grid=GRID).double()
    torch.nn.init.normal_(history.bias)
    sweeps = [sweep(seed, rows), sweep(seed + 1, 20)]
    found = history(sweeps, samples=2)
    stacked = torch.cat([dense_scatter(s, 2, GRID) for s in sweeps], dim=1)
    weight = torch.cat([mix.weight for mix in history.mix], dim=1)[:, :, None, None]
    torch.testing.assert_close(found, F.conv2d(stacked, weight, history.bias))


def test_gradients_reach_the_features_of_both_frames():
    history = BevHistory(channels=3, history_channels=2, grid=GRID).double()
    first, second = sweep(1, rows=7), sweep(2, rows=7)

    def run(a, b):
        return history([first._replace(features=a), second._replace(features=b)], 2)

    inputs = [s.features.clone().requires_grad_() for s in (first, second)]
    assert torch.autograd.gradcheck(run, inputs)
    gradients = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    for gradient, frame in zip(gradients, (first, second), strict=True):
        inside = frame.xyz_m[:, :2].abs().amax(dim=1) < GRID.range_m
        assert torch.equal(gradient.any(dim=1), inside)


def test_order_of_rows_does_not_matter_and_frames_are_not_interchangeable():
    torch.manual_seed(0)
    history = BevHistory(channels=3, history_channels=4, grid=GRID).double()
    first, second = sweep(1), sweep(2)
    order = torch.randperm(len(first.sample))
    shuffled = SweepFeatures(*(field[order] for field in first))
    expected = history([first, second], 2)
    torch.testing.assert_close(history([shuffled, second], 2), expected)
    assert not torch.allclose(history([second, first], 2), expected)


def test_a_missing_frame_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        BevHistory(3, 4, GRID).double()([sweep(1)], 2)


def test_cells_follow_x_by_rows_and_y_by_columns():
    grid = BevGrid(range_m=51.2, cell_m=0.4)
    xyz_m = torch.tensor([[-51.2, -51.2, 0.0], [51.1, -51.2, 99.0], [0.1, 0.5, 0.0], [51.2, 0.0, 0.0], [0, -51.3, 0]])
    cell, inside = grid.cell_of(xyz_m)
    assert inside.tolist() == [True, True, True, False, False]
    assert cell[:3].tolist() == [0, 255 * 256, 128 * 256 + 129]


def test_centres_lie_in_their_own_cells():
    grid = BevGrid(range_m=6.4, cell_m=0.4)
    centres = grid.centres_m().reshape(-1, 2)
    cell, inside = grid.cell_of(F.pad(centres, (0, 1)))
    assert inside.all()
    assert torch.equal(cell, torch.arange(grid.cells**2))


@pytest.mark.parametrize(
    "options", [{"cell_m": 0.3}, {"cell_m": 0.0}, {"range_m": -1.0}, {"z_min_m": 3.0}, {"cell_m": 1000.0}]
)
def test_impossible_grids_are_refused(options):
    with pytest.raises(UsageError):
        BevGrid(**options)


def test_scores_look_at_observed_cells_only():
    target = torch.tensor([[[OCCUPIED, OCCUPIED, FREE, FREE, UNOBSERVED, UNOBSERVED]]], dtype=torch.uint8)
    occupied = torch.tensor([[[True, False, True, False, True, False]]])
    scores = occupancy_scores(occupied, target)
    assert (scores["iou"].item(), scores["recall"].item()) == (pytest.approx(1 / 3), 0.5)


def test_nothing_to_find_scores_one_unless_something_was_found():
    target = torch.full((1, 2, 2), FREE, dtype=torch.uint8)
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert {k: v.item() for k, v in occupancy_scores(nothing, target).items()} == {"iou": 1.0, "recall": 1.0}
    assert occupancy_scores(~nothing, target)["iou"].item() == 0.0
