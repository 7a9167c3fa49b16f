"""Forecasts: truth and present against plain arithmetic, scores against scikit-learn, regions against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_dilation
from sklearn.metrics import jaccard_score

from hilda_schema import open_cache
from hilda_schema.errors import UsageError
from hilda_train.evaluate.forecast import Forecast, IoU, can_forecast, forecast, regions_of, scores, widened
from hilda_train.evaluate.restore import restore_run
from hilda_train.objectives.bev import FREE, OCCUPIED, UNOBSERVED, BevGrid

masks = arrays(bool, (9, 9))
maps = arrays(np.uint8, (9, 9), elements=st.sampled_from([FREE, OCCUPIED, UNOBSERVED]))
GRID = BevGrid(9.0, 2.0)


@given(st.lists(st.tuples(masks, masks, masks), min_size=1, max_size=3))
def test_iou_is_scikit_learns_over_all_cells_together(rounds):
    iou = IoU()
    for predicted, truth, where in rounds:
        iou.add(predicted, truth, where)
    truth, predicted = (np.concatenate([each[k][each[2]] for each in rounds]) for k in (1, 0))
    if (truth | predicted).any():
        assert iou.value == pytest.approx(jaccard_score(truth, predicted))
    else:
        assert np.isnan(iou.value)


@given(masks, st.integers(1, 3))
def test_widening_is_scipys_dilation(mask, cells):
    box = np.ones((2 * cells + 1,) * 2, bool)
    np.testing.assert_array_equal(widened(mask, cells), binary_dilation(mask, box))


@given(maps, maps)
def test_a_perfect_forecast_scores_one_wherever_there_is_something(truth, present):
    perfect = Forecast("k", truth, present, (truth == OCCUPIED).astype(np.float32), GRID)
    table = {}
    scores(perfect, regions_of(perfect), table)
    for row in table.values():
        assert np.isnan(row["model"].value) or row["model"].value == 1


@given(maps)
def test_where_nothing_changes_the_present_is_the_best_forecast_and_no_cell_is_around_a_change(truth):
    still = Forecast("k", truth, truth, np.zeros((9, 9), np.float32), GRID)
    table = {}
    regions = regions_of(still)
    scores(still, regions, table)
    assert not regions["around a change"].any()
    assert np.isnan(table["all cells"]["carried forward"].value) or table["all cells"]["carried forward"].value == 1


def test_unobserved_cells_never_count():
    truth = np.full((9, 9), UNOBSERVED, np.uint8)
    blind = Forecast("k", truth, truth, np.ones((9, 9), np.float32), GRID)
    table = {}
    scores(blind, {"all cells": np.ones((9, 9), bool)}, table)
    assert np.isnan(table["all cells"]["model"].value)


def cells_with_returns(points_xyz_m, solid, grid):
    """(H, W) by a loop: cells with a solid return in the height band, outside the vehicle's own body."""
    found = np.zeros((grid.cells,) * 2, bool)
    for (x, y, z), is_solid in zip(points_xyz_m.tolist(), solid.tolist(), strict=True):
        row, column = int((x + grid.range_m) // grid.cell_m), int((y + grid.range_m) // grid.cell_m)
        inside = 0 <= row < grid.cells and 0 <= column < grid.cells and grid.z_min_m <= z <= grid.z_max_m
        if is_solid and inside:
            found[row, column] = True
    return found


def test_truth_and_present_are_the_returns_of_both_sweeps_in_the_frame_of_t0(restored, toy_cache):
    clip = next(clip for clip in restored.clips if clip.whole)
    made, cache = forecast(restored, clip, draws=1), open_cache(toy_cache)
    now, future = cache[clip.current], cache[clip.next]
    t0_SE3_t1 = np.linalg.inv(now.world_SE3_lidar) @ future.world_SE3_lidar
    moved = future.points.xyz_m.astype(np.float64) @ t0_SE3_t1[:3, :3].T + t0_SE3_t1[:3, 3]
    away = np.linalg.norm(moved[:, :2] - t0_SE3_t1[:2, 3], axis=1) >= 2.5
    np.testing.assert_array_equal(
        made.truth == OCCUPIED, cells_with_returns(moved.astype(np.float32), ~future.points.ground & away, made.grid)
    )
    away = np.linalg.norm(now.points.xyz_m[:, :2], axis=1) >= 2.5
    solid = ~now.points.ground & away
    np.testing.assert_array_equal(made.carried, cells_with_returns(now.points.xyz_m, solid, made.grid))


def test_draws_follow_from_the_seed_and_their_mean_is_the_probability(restored):
    clip = next(clip for clip in restored.clips if clip.whole)
    first, again, other = (forecast(restored, clip, draws=2, seed=seed).probability for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first >= 0).all()
    assert (first <= 1).all()


def test_a_plain_decoder_forecasts_too_and_others_do_not(fit, toy_cache, tmp_path):
    size = "range_m: 16.0, cell_m: 2.0, history_channels: 8, base: 8, multipliers: [1, 2]"
    assert fit(tmp_path / "bce", "train.max_steps=2", f"objectives.occupancy={{kind: bce, {size}}}") == 0
    restored = restore_run(tmp_path / "bce", [str(toy_cache)])
    clip = next(clip for clip in restored.clips if clip.whole)
    np.testing.assert_array_equal(forecast(restored, clip).probability, forecast(restored, clip, seed=1).probability)
    assert fit(tmp_path / "none", "train.max_steps=2", "objectives.occupancy={kind: none}") == 0
    assert not can_forecast(restore_run(tmp_path / "none", [str(toy_cache)]))


def test_a_clip_at_a_scenes_border_cannot_be_forecast(restored):
    border = next(clip for clip in restored.clips if not clip.whole)
    with pytest.raises(UsageError, match="has no neighbours"):
        forecast(restored, border)
