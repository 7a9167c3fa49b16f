"""`hilda-train robustness` on a toy run, and the corrupted sweeps that it is tested on."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch

from hilda_schema import open_cache
from hilda_schema.errors import UsageError
from hilda_train.evaluate.classes import IGNORED, load_classes
from hilda_train.evaluate.commands import Asked, segmentation
from hilda_train.evaluate.corruptions import Corrupted, Sweep, corrupt
from hilda_train.evaluate.metrics import Confusion
from hilda_train.evaluate.robustness_commands import CorruptedSweeps, miou_over, robustness
from hilda_train.evaluate.sweeps import LabelledSweeps, SweepOptions, sweep_scan_options
from hilda_train.run import read_config

CPU = torch.device("cpu")


@pytest.fixture
def asked(short_run, toy_cache, toy_classes):
    """A short probe of the toy run."""
    return Asked(
        "probe", str(short_run), (str(toy_cache),), toy_classes, "quick", assignments=("probe.epochs=4",),
        device="cpu", as_json=True,
    )  # fmt: skip


@pytest.fixture
def sweeps(short_run, toy_cache, toy_classes):
    """sweeps(corrupt or None) -> labelled sweep of frame 1."""
    scan = sweep_scan_options(read_config(short_run), {}, None)
    options = SweepOptions(scan, None, load_classes(toy_classes), 0, judged=True)

    def make(change):
        kind = LabelledSweeps if change is None else partial(CorruptedSweeps, corrupt=change)
        return kind([str(toy_cache)], [(0, 1)], options)[0, 0, 0]

    return make


def nothing(sweep, _key):
    return Corrupted.kept(sweep, np.arange(len(sweep.xyz_m)))


def test_a_corruption_that_changes_nothing_changes_nothing(sweeps):
    clean, same = sweeps(None), sweeps(nothing)
    torch.testing.assert_close(same.points.feats, clean.points.feats, rtol=0, atol=0)
    torch.testing.assert_close(same.whole.truth, clean.whole.truth, rtol=0, atol=0)
    torch.testing.assert_close(same.whole.reads, clean.whole.reads, rtol=0, atol=0)


def test_labels_follow_their_points_and_foreign_returns_have_none(sweeps, toy_cache):
    frame = open_cache(toy_cache)[1]
    change = partial(corrupt, name="crosstalk", severity=3, seed=0)
    made = corrupt(Sweep.of(frame.points), "crosstalk", 3, 0, str(frame.key))
    found = sweeps(lambda sweep, key: change(sweep, key=key))
    assert (made.source < 0).any()
    expected = np.where(made.source >= 0, frame.points.label.astype(int)[made.source] - 1, IGNORED)
    np.testing.assert_array_equal(found.whole.truth.numpy(), expected)
    # what the student sees lies where the corruption left it
    rows = np.flatnonzero(np.isin(made.xyz_m[:, 0], found.points.xyz_m[:, 0].numpy()))
    np.testing.assert_array_equal(found.points.xyz_m.numpy(), made.xyz_m[rows])


def test_a_model_against_itself_and_the_clean_score_is_the_probes(asked, short_run, capsys):
    robustness(asked, str(short_run), ["beam_missing", "fog"])
    result = json.loads(capsys.readouterr().out)
    assert result["mce"] == pytest.approx(1)
    assert result["model"]["miou"] == result["baseline"]["miou"]
    assert result["model"]["miou"].keys() == {"beam_missing", "fog"}
    assert result["model"]["clean_miou"] == segmentation(asked, CPU)[0]["miou"]
    means = [np.mean(values) for values in result["model"]["miou"].values()]
    assert result["model"]["mrr"] == pytest.approx(np.mean(means) / result["model"]["clean_miou"])


def test_against_random_weights_and_the_same_again(asked, capsys):
    robustness(asked, "random", ["crosstalk"])
    first = json.loads(capsys.readouterr().out)
    assert first["baseline"]["weights"]["kind"] == "random"
    lost = [1 - np.array(first[who]["miou"]["crosstalk"]) for who in ("model", "baseline")]
    assert first["mce"] == pytest.approx(lost[0].sum() / lost[1].sum())
    robustness(asked, "random", ["crosstalk"])
    assert json.loads(capsys.readouterr().out) == first


def test_a_class_that_a_corruption_takes_away_counts_as_not_found():
    """Two of three classes are found; without the third, the mean must not rise."""
    clean, left = Confusion(4), Confusion(4)
    truth, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 3])
    clean.add(truth, predicted)
    left.add(truth[:4], predicted[:4])
    occurring = clean.points > 0
    assert miou_over(clean, occurring) == pytest.approx(2 / 3)
    assert miou_over(left, occurring) == pytest.approx(2 / 3)
    assert left.miou("left out") == 1
    assert np.isnan(miou_over(clean, np.zeros(4, bool)))


def test_an_unknown_corruption_is_named_before_anything_is_opened():
    with pytest.raises(UsageError, match="'hail' is not known"):
        robustness(Asked("probe", "nowhere", (), "nothing", "none"), "random", ["fog", "hail"])
