"""Cosines against naive loops, and the best constant prediction against a search for a better one."""

from __future__ import annotations

import numpy as np
import pytest

from hilda_schema import open_cache
from hilda_train.evaluate.agreement import agreement, predict


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_predictions_sit_at_their_pairs(restored, toy_cache, in_range_of):
    clip = next(clip for clip in restored.clips if clip.whole)
    seen, frame = predict(restored, clip), open_cache(toy_cache)[clip.current]
    in_range = in_range_of(restored, frame.points.xyz_m)
    pairs = in_range[frame.pairs.point]
    np.testing.assert_array_equal(seen.xyz_m, frame.points.xyz_m[in_range])
    np.testing.assert_array_equal(seen.xyz_m[seen.point], frame.points.xyz_m[frame.pairs.point[pairs]])
    np.testing.assert_array_equal(seen.camera, frame.pairs.camera[pairs])
    np.testing.assert_allclose(seen.uv_px, frame.pairs.uv_px[pairs], atol=1e-3)
    np.testing.assert_array_equal(seen.student, seen.everywhere[seen.point])
    assert len(seen.everywhere) == len(seen.xyz_m)


def test_cosines_are_the_means_over_all_pairs_of_both_sweeps(restored):
    """The last target of a clip, from the predictions of its two sweeps, each predicted as the current one."""
    clip = next(clip for clip in restored.clips if clip.whole)
    before = next(each for each in restored.clips if each.current == clip.previous)
    rows = [predict(restored, each) for each in (before, clip)]
    teacher = unit(np.concatenate([each.teacher for each in rows]).astype(np.float64))
    student = unit(np.concatenate([each.student for each in rows]).astype(np.float64))
    *_, found = agreement(restored, clip).values()
    assert found.pairs == len(teacher)
    assert found.student == pytest.approx(float((teacher * student).sum(1).mean()), abs=1e-5)

    # no vector does better than the constant; the mean direction does as well
    rng = np.random.default_rng(0)
    tried = unit(np.concatenate([rng.normal(size=(500, teacher.shape[1])), teacher.mean(0, keepdims=True)]))
    reached = (tried @ teacher.T).mean(1)
    assert reached.max() == pytest.approx(found.constant, abs=1e-5)
    assert reached.argmax() == 500


def test_sums_add_up(restored):
    first, second = (agreement(restored, clip) for clip in restored.clips[1:3])
    for name, both in {name: first[name] + second[name] for name in first}.items():
        weights = np.array([first[name].pairs, second[name].pairs])
        values = np.array([first[name].student, second[name].student])
        assert both.student == pytest.approx(float((weights * values).sum() / weights.sum()))
