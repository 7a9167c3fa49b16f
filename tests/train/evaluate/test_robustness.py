"""mCE and mRR by hand, and against numbers that Robo3D and later papers publish for nuScenes-C."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from hilda_schema.errors import UsageError
from hilda_train.evaluate.corruptions import CORRUPTIONS, Sweep, corrupt
from hilda_train.evaluate.robustness import (
    corruption_errors,
    mean_corruption_error,
    mean_resilience_rate,
    measure,
    resilience_rates,
)

# mIoU in per cent on nuScenes-C: clean, then fog, wet ground, snow, motion blur, beam missing, crosstalk, incomplete
# echo, cross-sensor, each the mean of three severities; mCE against MinkUNet18, mRR. From Robo3D's table.
MINKUNET18 = (75.76, (53.64, 73.91, 40.35, 73.39, 68.54, 26.58, 63.83, 50.95), 100.00, 74.44)
PUBLISHED = {
    "MinkUNet18": MINKUNET18,
    "MinkUNet34": (76.90, (56.91, 74.93, 37.50, 75.24, 70.10, 29.32, 64.96, 52.96), 96.37, 75.08),
    "FIDNet": (71.38, (64.80, 68.02, 58.97, 48.90, 48.14, 57.45, 48.76, 23.70), 122.42, 73.33),
    "WaffleIron": (76.07, (56.07, 73.93, 49.59, 59.46, 65.19, 33.12, 61.51, 44.01), 106.73, 72.78),
    "GFNet": (76.79, (69.59, 75.52, 71.83, 59.43, 64.47, 66.78, 61.86, 42.30), 92.55, 83.31),
    # MinkUNet34 from random weights, as image-to-LiDAR papers report it
    "random": (74.66, (62.96, 70.65, 55.48, 51.71, 62.01, 31.56, 59.64, 39.41), 112.20, 72.57),
}


def table(means):
    """Three equal severities; only their sum counts."""
    return {name: (value / 100,) * 3 for name, value in zip(CORRUPTIONS, means, strict=True)}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models(model):
    clean, means, mce, mrr = PUBLISHED[model]
    assert 100 * mean_corruption_error(table(means), table(MINKUNET18[1])) == pytest.approx(mce, abs=0.01)
    assert 100 * mean_resilience_rate(table(means), clean / 100) == pytest.approx(mrr, abs=0.02)


def test_worked_by_hand():
    model = {"fog": (0.6, 0.5, 0.4), "snow": (0.3, 0.3, 0.3)}
    baseline = {"fog": (0.5, 0.4, 0.3), "snow": (0.4, 0.4, 0.4)}
    errors = corruption_errors(model, baseline)  # 1.5 / 1.8 and 2.1 / 1.8
    assert errors == pytest.approx({"fog": 0.8333333, "snow": 1.1666667})
    assert mean_corruption_error(model, baseline) == pytest.approx(1.0)
    rates = resilience_rates(model, 0.8)  # 0.5 / 0.8 and 0.3 / 0.8
    assert rates == pytest.approx({"fog": 0.625, "snow": 0.375})
    assert mean_resilience_rate(model, 0.8) == pytest.approx(0.5)
    assert np.isnan(mean_resilience_rate(model, 0.0))


def test_a_ratio_is_of_sums_over_severities_and_not_a_mean_of_ratios():
    assert corruption_errors({"fog": (0.9, 0.0, 0.0)}, {"fog": (0.8, 0.5, 0.5)})["fog"] == pytest.approx(2.1 / 1.2)


def test_other_corruptions_are_refused():
    with pytest.raises(UsageError, match="different corruptions"):
        mean_corruption_error({"fog": (0.1,) * 3}, {"snow": (0.1,) * 3})
    with pytest.raises(UsageError, match="'hail' is not known"):
        measure(lambda _: 0.5, ["hail"])


def test_a_model_is_shown_what_the_corruptions_make():
    """A model whose mIoU is the share of points left: beams missing cost it their share."""
    rng = np.random.default_rng(0)
    ring = np.repeat(np.arange(32, dtype=np.uint8), 50)
    sweep = Sweep(rng.normal(size=(1600, 3)).astype(np.float32), np.ones(1600, np.float32), ring > 9, ring)
    shown = []

    def evaluate(corruption):
        if corruption is None:
            return 1.0
        made = pickle.loads(pickle.dumps(corruption))(sweep, "drive/scene/1")  # as a loader's worker gets it
        shown.append(made)
        return len(made.source) / 1600

    found = measure(evaluate, ["beam_missing", "motion_blur"], seed=5)
    assert found.clean == 1
    assert found.corrupted == {"beam_missing": (0.75, 0.5, 0.25), "motion_blur": (1.0, 1.0, 1.0)}
    np.testing.assert_array_equal(shown[4].xyz_m, corrupt(sweep, "motion_blur", 2, 5, "drive/scene/1").xyz_m)
