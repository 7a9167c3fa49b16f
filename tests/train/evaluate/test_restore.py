"""A restored run is the run: its weights, its caches, its held-out scenes, and sweeps as they were recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hilda_schema import open_cache
from hilda_schema.errors import TrainError
from hilda_schema.testing import tiny_cache
from hilda_train.evaluate.restore import restore_run, spread


def test_weights_are_those_of_the_newest_checkpoint(restored, short_run, weights):
    saved = {name: tensor for (file, name), tensor in weights(short_run).items() if file == "model"}
    state = restored.learner.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    assert restored.step == 3
    assert not restored.learner.training


def test_a_moving_average_is_what_is_judged(fit, toy_cache, tmp_path, weights):
    assert fit(tmp_path / "run", "train.max_steps=3", "train.ema=0.9") == 0
    state = restore_run(tmp_path / "run", [str(toy_cache)]).learner.state_dict()
    saved = weights(tmp_path / "run")
    averaged = {name: tensor for (file, name), tensor in saved.items() if file == "average"}
    assert averaged
    assert all(torch.equal(state[name], tensor) for name, tensor in averaged.items())
    assert any(not torch.equal(saved["model", name], tensor) for name, tensor in averaged.items())


def test_held_out_scenes_are_judged_and_only_they(restored, toy_cache):
    scenes = open_cache(toy_cache).frames["scene"].to_pylist()
    assert {scenes[clip.current] for clip in restored.clips} == {"scene-0001"}
    assert {scenes[clip.current] for clip in restored.prepared.clips} == set(scenes) - {"scene-0001"}


def test_without_held_out_scenes_those_trained_on_are_judged(fit, toy_cache, tmp_path):
    assert fit(tmp_path / "run", "train.max_steps=2") == 0
    restored = restore_run(tmp_path / "run", [str(toy_cache)])
    assert restored.held_out == ()
    assert restored.clips == restored.prepared.clips


def test_sweeps_are_as_recorded(restored, toy_cache, in_range_of):
    clip = next(clip for clip in restored.clips if clip.whole)
    batch, targets = restored.batch(clip)
    frame = open_cache(toy_cache)[clip.current]
    inside = batch.points.batch_index == batch.points.batch_size - 1
    in_range = in_range_of(restored, frame.points.xyz_m)
    np.testing.assert_array_equal(batch.points.xyz_m[inside].numpy(), frame.points.xyz_m[in_range])
    layer = restored.prepared.tokens.layers[-1]
    expected = frame.point_features(layer.teacher, layer=layer.layer)[in_range[frame.pairs.point]]
    np.testing.assert_allclose(targets.layers[-1][-batch.pair_counts[-1] :].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_other_caches_and_missing_checkpoints_are_refused(short_run, toy_cache, tmp_path):
    other = tiny_cache(tmp_path / "other", points=200, seed=5)
    with pytest.raises(TrainError, match="the caches are not those"):
        restore_run(short_run, [str(other)])
    for path in (short_run / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    with pytest.raises(TrainError, match="no checkpoint yet"):
        restore_run(short_run, [str(toy_cache)])


@pytest.mark.parametrize(
    ("length", "count", "expected"), [(0, 3, []), (1, 3, [0]), (10, 1, [0]), (10, 3, [0, 4, 9]), (3, 9, [0, 1, 2])]
)
def test_spread_takes_first_last_and_what_lies_between(length, count, expected):
    assert spread(range(length), count) == expected
