"""The nuScenes detection score against a naive reading of its definition, and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_train.evaluate.detection.metrics import (
    DISTANCES_M,
    ERRORS,
    ClassScore,
    FoundBoxes,
    aligned_iou,
    class_score,
    overall,
    turn_between,
)

EVERYTHING = {"front": True, "turns": True, "moves": True}


def boxes(frame, x, y=None, score=None, yaw=None, size=None, velocity=None):
    count = len(frame)
    zeros = np.zeros(count)
    return FoundBoxes(
        frame=np.array(frame, np.int64),
        centre_m=np.stack([np.array(x, float), zeros if y is None else np.array(y, float)], axis=1),
        size_m=np.array(size, float) if size is not None else np.ones((count, 3)),
        yaw_rad=zeros if yaw is None else np.array(yaw, float),
        velocity_mps=np.array(velocity, float) if velocity is not None else np.zeros((count, 2)),
        score=np.ones(count) if score is None else np.array(score, float),
    )


def random_boxes(rng, count, frames, scored, ties=False):
    return boxes(
        rng.integers(0, frames, count),
        rng.uniform(-6, 6, count),
        rng.uniform(-6, 6, count),
        (rng.integers(1, 12, count) / 12 if ties else rng.permutation(count) / (count + 1) + 0.01) if scored else None,
        rng.uniform(-7, 7, count),
        rng.uniform(0.5, 5, (count, 3)),
        np.where(rng.random((count, 1)) < 0.3 * (not scored), np.nan, rng.normal(size=(count, 2))),
    )


def naive(truth, predicted, front):  # noqa: C901  one piece, as the definition is
    """The definition, a prediction at a time and a recall at a time."""
    result = {}
    for limit in DISTANCES_M:
        order = sorted(range(len(predicted)), key=lambda k: (predicted.score[k], k), reverse=True)
        taken, hits, found = set(), [], []
        for k in order:
            near = [
                (math.dist(truth.centre_m[t], predicted.centre_m[k]), t)
                for t in range(len(truth))
                if truth.frame[t] == predicted.frame[k] and t not in taken
            ]
            distance, t = min(near, default=(math.inf, None))
            hits.append(distance < limit)
            if distance < limit:
                taken.add(t)
                found.append((k, t, distance))
        curve = [(sum(hits[: n + 1]) / len(truth), sum(hits[: n + 1]) / (n + 1), predicted.score[k])
                 for n, k in enumerate(order)]  # fmt: skip
        if curve and curve[0][0] != 0:
            curve = [(0.0, curve[0][1], 1.0), *curve]

        def at(recall, column, curve=curve):
            """Linear between the points of the curve; nothing beyond the last."""
            if not curve or recall > curve[-1][0]:
                return 0.0
            exact = [point for point in curve if point[0] == recall]
            if exact:
                return exact[-1][column]
            right = next(n for n, point in enumerate(curve) if point[0] > recall)
            if right == 0:
                return curve[0][column]
            (r0, *_), (r1, *_) = curve[right - 1], curve[right]
            share = (recall - r0) / (r1 - r0)
            return (1 - share) * curve[right - 1][column] + share * curve[right][column]

        recalls = np.linspace(0, 1, 101)
        precision = [at(r, 1) for r in recalls]
        result[limit] = float(np.mean([max(p - 0.1, 0) for p in precision[11:]]) / 0.9)
        if limit == 2.0:
            reached = [n for n, r in enumerate(recalls) if at(r, 2) != 0]
            last = reached[-1] if reached else 0
            errors = {name: [] for name in ERRORS}
            for k, t, distance in found:
                period = 2 * math.pi if front else math.pi
                turn = abs(truth.yaw_rad[t] - predicted.yaw_rad[k]) % period
                a, b = truth.size_m[t], predicted.size_m[k]
                common = math.prod(np.minimum(a, b))
                errors["translation"].append(distance)
                errors["orientation"].append(min(turn, period - turn))
                errors["scale"].append(1 - common / (math.prod(a) + math.prod(b) - common))
                errors["velocity"].append(math.dist(truth.velocity_mps[t], predicted.velocity_mps[k]))
            if not found or last < 11:
                result["errors"] = dict.fromkeys(ERRORS, 1.0)
                continue
            result["errors"] = {}
            for name, values in errors.items():
                running = []
                for n in range(len(values)):
                    known = [v for v in values[: n + 1] if not math.isnan(v)]
                    running.append(sum(known) / len(known) if known else 0.0)
                if all(math.isnan(v) for v in values):
                    running = [1.0] * len(values)
                confidence = [predicted.score[k] for k, _, _ in found]
                # scores fall, numpy wants them rising
                wanted = [at(recalls[n], 2) for n in range(11, last + 1)]
                result["errors"][name] = float(np.mean(np.interp(wanted, confidence[::-1], running[::-1])))
    return result


@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(0, 60), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_scores_are_those_of_a_naive_reading(seed, true, said, front, ties):
    rng = np.random.default_rng(seed)
    truth, predicted = random_boxes(rng, true, 3, False), random_boxes(rng, said, 3, True, ties)
    found, expected = class_score(truth, predicted, front=front, turns=True, moves=True), naive(truth, predicted, front)
    for distance, ap in zip(DISTANCES_M, found.ap, strict=True):
        assert ap == pytest.approx(expected[distance], abs=1e-9)
    for name in ERRORS if not ties else ():  # where scores are equal, an error between them is anyone's
        assert found.errors[name] == pytest.approx(expected["errors"][name], abs=1e-9)


def test_everything_found_where_it_is_scores_one_and_nothing_found_zero():
    truth = random_boxes(np.random.default_rng(0), 10, 4, False)
    truth.velocity_mps[:] = 1.0
    perfect = class_score(truth, truth, **EVERYTHING)
    assert perfect.ap == pytest.approx((1.0,) * 4)
    assert perfect.errors == pytest.approx(dict.fromkeys(ERRORS, 0.0))
    assert overall([perfect]).summed_up == pytest.approx(1.0)
    nothing = class_score(truth, boxes([], []), **EVERYTHING)
    assert (nothing.ap, nothing.errors) == ((0.0,) * 4, dict.fromkeys(ERRORS, 1.0))
    assert overall([nothing]).summed_up == 0.0


def test_a_prediction_counts_from_the_distance_on_in_which_it_lies():
    truth = boxes([0, 1], [0, 0])
    found = class_score(truth, boxes([0, 1], [0.7, 0.7]), **EVERYTHING)
    assert found.ap == pytest.approx((0.0, 1.0, 1.0, 1.0))
    assert found.mean_ap == pytest.approx(0.75)
    assert found.errors["translation"] == pytest.approx(0.7)


def test_by_hand_two_of_four_found_with_one_false_alarm_between():
    """Precision 1 up to a recall of 1/4, then straight down to 2/3 at 1/2, then nothing."""
    truth = boxes([0, 1, 2, 3], [0, 0, 0, 0])
    predicted = boxes([0, 5, 1], [0, 0, 0], score=[0.9, 0.8, 0.7])
    recalls = np.linspace(0, 1, 101)
    precision = np.interp(recalls, [0, 0.25, 0.25, 0.5], [1, 1, 0.5, 2 / 3], right=0)
    # at the step of the false alarm the later of the two values holds
    expected = np.maximum(precision[11:] - 0.1, 0).mean() / 0.9
    assert class_score(truth, predicted, **EVERYTHING).ap[0] == pytest.approx(expected)


def test_of_two_predictions_of_one_box_the_better_one_counts_even_if_it_is_farther():
    truth = boxes([0], [0])
    predicted = boxes([0, 0], [0.4, 0.0], score=[0.9, 0.8])
    assert class_score(truth, predicted, **EVERYTHING).errors["translation"] == pytest.approx(0.4)


def test_turns_and_overlaps():
    half = np.pi
    assert turn_between(np.array([0.1, 3.1, -3.1]), np.array([-0.1, -3.1, 3.1]), 2 * half) == pytest.approx(
        [0.2, 2 * half - 6.2, 2 * half - 6.2]
    )
    assert turn_between(np.array([0.0]), np.array([half - 0.1]), half) == pytest.approx([0.1])
    assert aligned_iou(np.array([[4.0, 2, 1]]), np.array([[2.0, 2, 2]])) == pytest.approx([4 / 12])


def test_what_has_no_meaning_is_left_out_of_means():
    cone = class_score(boxes([0], [0]), boxes([0], [0]), front=True, turns=False, moves=False)
    assert np.isnan([cone.errors["orientation"], cone.errors["velocity"]]).all()
    absent = class_score(boxes([], []), boxes([0], [3]), **EVERYTHING)
    assert absent.true == 0
    assert np.isnan(absent.mean_ap)
    score = overall([cone, absent])
    assert score.mean_ap == pytest.approx(1.0)
    assert score.summed_up == pytest.approx((5 + 1 + 1) / 7)
    assert np.isnan(overall([absent]).summed_up)
    half = ClassScore(1, 1, (0.5,) * 4, {"translation": 0.3, "scale": 0.4, "orientation": 3.0, "velocity": 0.8})
    assert overall([half]).summed_up == pytest.approx((2.5 + 0.7 + 0.6 + 0 + 0.2) / 9)
