"""The nuScenes detection score, from its definition (Caesar et al., CVPR 2020, section 3.1).

A prediction is right when it is, among predictions of its class taken by falling score, the first to come within a
distance of a true box, between centres in the ground plane. AP is the area below precision over recall, both above a
tenth, and mAP its mean over classes and over the distances 0.5, 1, 2 and 4 m. Errors are those of the right predictions
at 2 m, averaged over the recalls that are reached, above a tenth.

Two differences, both for sets of boxes that the dataset does not publish: a class without a true box in the test frames
is left out of the means (the devkit counts it as 0), and there are no attributes, so that the score that sums up is
(5 mAP + sum over the four errors of 1 - min(1, error)) / 9.

Legend: M true boxes, P predictions, R = 101 recalls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
ERROR_DISTANCE_M = 2.0
MIN_RECALL = MIN_PRECISION = 0.1
RECALLS = 101
ERRORS = ("translation", "scale", "orientation", "velocity")
MAP_WEIGHT = 5


@dataclass(frozen=True, slots=True, eq=False)
class FoundBoxes:
    """Boxes of one class over all frames, true or predicted."""

    frame: NDArray[np.int64]  # (P,)
    centre_m: Float64Array  # (P, 2) x, y
    size_m: Float64Array  # (P, 3)
    yaw_rad: Float64Array  # (P,)
    velocity_mps: Float64Array  # (P, 2) NaN where it is not known
    score: Float64Array  # (P,) of predictions

    def __len__(self) -> int:
        return len(self.frame)

    @classmethod
    def cat(cls, parts: Sequence[FoundBoxes]) -> FoundBoxes:
        """Join; at least one."""
        return cls(**{each.name: np.concatenate([getattr(p, each.name) for p in parts]) for each in fields(cls)})


@dataclass(frozen=True, slots=True)
class ClassScore:
    """What one class scores; NaN where a number has no meaning."""

    true: int
    predicted: int
    ap: tuple[float, ...]  # at each of `DISTANCES_M`
    errors: dict[str, float]  # of `ERRORS`

    @property
    def mean_ap(self) -> float:
        """Over the distances."""
        return float(np.mean(self.ap))


@dataclass(frozen=True, slots=True, eq=False)
class _Matches:
    """Predictions by falling score."""

    order: NDArray[np.int64]  # (P,)
    true: NDArray[np.int64]  # (P,) row of the true box, -1 for a wrong prediction


def class_score(truth: FoundBoxes, predicted: FoundBoxes, *, front: bool, turns: bool, moves: bool) -> ClassScore:
    """Score one class.

    Args:
        truth: its true boxes; without any, all numbers are NaN.
        predicted: its predictions.
        front: whether it has a front, else a direction and its opposite are one.
        turns: whether its direction is judged.
        moves: whether its velocity is judged.
    """
    judged = {"translation": True, "scale": True, "orientation": turns, "velocity": moves}
    if not len(truth):
        nothing = {name: float("nan") for name in ERRORS}
        return ClassScore(0, len(predicted), (float("nan"),) * len(DISTANCES_M), nothing)
    ap, errors = [], dict.fromkeys(ERRORS, 1.0)
    for distance in DISTANCES_M:
        matches = _match(truth, predicted, distance)
        precision, score = _curve(matches, predicted, len(truth))
        ap.append(_average_precision(precision))
        if distance == ERROR_DISTANCE_M:
            errors = _errors(truth, predicted, matches, score, front)
    return ClassScore(
        len(truth), len(predicted), tuple(ap), {n: v if judged[n] else float("nan") for n, v in errors.items()}
    )


def _match(truth: FoundBoxes, predicted: FoundBoxes, distance_m: float) -> _Matches:
    """Each prediction, best first, takes the nearest true box of its frame that is free, if that is near enough."""
    # Of equal scores the later one comes first, as in the devkit's reversed sort.
    order = np.lexsort((np.arange(len(predicted)), predicted.score))[::-1]
    rows_of = {int(frame): np.flatnonzero(truth.frame == frame) for frame in np.unique(truth.frame)}
    free = np.ones(len(truth), np.bool_)
    matched = np.full(len(predicted), -1)
    for place, row in enumerate(order):
        rows = rows_of.get(int(predicted.frame[row]), np.zeros(0, np.int64))
        rows = rows[free[rows]]
        if len(rows):
            apart = np.linalg.norm(truth.centre_m[rows] - predicted.centre_m[row], axis=1)
            if apart.min() < distance_m:
                matched[place] = rows[apart.argmin()]
                free[matched[place]] = False
    return _Matches(order, matched)


def _curve(matches: _Matches, predicted: FoundBoxes, true: int) -> tuple[Float64Array, Float64Array]:
    """(R,) precision, and (R,) score at which a recall is reached, 0 where none does."""
    if not len(matches.order):
        return np.zeros(RECALLS), np.zeros(RECALLS)
    hits = np.cumsum(matches.true >= 0)
    recall, precision = hits / true, hits / np.arange(1, len(hits) + 1)
    score = predicted.score[matches.order]
    if recall[0] != 0:
        recall, precision, score = np.r_[0, recall], np.r_[precision[0], precision], np.r_[1.0, score]
    wanted = np.linspace(0, 1, RECALLS)
    return np.interp(wanted, recall, precision, right=0), np.interp(wanted, recall, score, right=0)


def _average_precision(precision: Float64Array) -> float:
    above = precision[round((RECALLS - 1) * MIN_RECALL) + 1 :]
    return float(np.maximum(above - MIN_PRECISION, 0).mean() / (1 - MIN_PRECISION))


def _errors(
    truth: FoundBoxes, predicted: FoundBoxes, matches: _Matches, score: Float64Array, front: bool
) -> dict[str, float]:
    hits = np.flatnonzero(matches.true >= 0)
    first = round((RECALLS - 1) * MIN_RECALL) + 1
    last = int(np.flatnonzero(score)[-1]) if score.any() else 0
    if not len(hits) or last < first:
        return dict.fromkeys(ERRORS, 1.0)
    a, b = matches.true[hits], matches.order[hits]
    found = {
        "translation": np.linalg.norm(truth.centre_m[a] - predicted.centre_m[b], axis=1),
        "scale": 1 - aligned_iou(truth.size_m[a], predicted.size_m[b]),
        "orientation": turn_between(truth.yaw_rad[a], predicted.yaw_rad[b], 2 * np.pi if front else np.pi),
        "velocity": np.linalg.norm(truth.velocity_mps[a] - predicted.velocity_mps[b], axis=1),
    }
    own = predicted.score[b]
    return {
        name: float(np.interp(score[::-1], own[::-1], _running_mean(each)[::-1])[::-1][first : last + 1].mean())
        for name, each in found.items()
    }


def _running_mean(values: Float64Array) -> Float64Array:
    """Mean of each value and those before it, unknown ones left out; 1 throughout where none is known."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    count = np.cumsum(known)
    mean: Float64Array = np.divide(np.nancumsum(values), count, out=np.zeros(len(values)), where=count > 0)
    return mean


def aligned_iou(a_m: Float64Array, b_m: Float64Array) -> Float64Array:
    """(P,) overlap of boxes with one centre and one direction, from their (P, 3) sizes."""
    common = np.minimum(a_m, b_m).prod(axis=1)
    overlap: Float64Array = common / (a_m.prod(axis=1) + b_m.prod(axis=1) - common)
    return overlap


def turn_between(a_rad: Float64Array, b_rad: Float64Array, period_rad: float) -> Float64Array:
    """(P,) least angle between directions, which repeat after a period."""
    turn: Float64Array = np.abs((a_rad - b_rad + period_rad / 2) % period_rad - period_rad / 2)
    return turn


@dataclass(frozen=True, slots=True)
class DetectionScore:
    """What all classes score together."""

    mean_ap: float
    errors: dict[str, float]
    summed_up: float  # the nuScenes detection score without attributes


def overall(scores: Sequence[ClassScore]) -> DetectionScore:
    """Means over the classes that occur, and their sum; NaN where there is none."""
    mean_ap = _mean([each.mean_ap for each in scores])
    errors = {name: _mean([each.errors[name] for each in scores]) for name in ERRORS}
    goodness = [1 - min(1.0, error) for error in errors.values() if not np.isnan(error)]
    summed_up = (MAP_WEIGHT * mean_ap + sum(goodness)) / (MAP_WEIGHT + len(goodness))
    return DetectionScore(mean_ap, errors, summed_up)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
