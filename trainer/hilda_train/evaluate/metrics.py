"""Semantic segmentation scores from one confusion matrix over all points of a test set.

The three published lines count alike but for classes that neither occur nor are predicted: ScaLR and SuperFlow
leave them out of the mean, SLidR counts each as an IoU of 1.

Legend: N points, K classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Absent = Literal["left out", "one"]
"""What becomes of a class with an empty union: no part of the mean (ScaLR, SuperFlow), or an IoU of 1 (SLidR)."""


class Confusion:
    """Counts of (true class, predicted class).

    Attributes:
        counts: (K, K) int64, a row for each true class.
        unlabelled: points without a class, which count nowhere.
    """

    def __init__(self, classes: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((classes, classes), np.int64)
        self.unlabelled = 0

    def add(self, truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
        """Count points.

        Args:
            truth: (N,) classes; a negative number for a point without one.
            predicted: (N,) classes.

        Raises:
            ValueError: a class of K or more, or a negative prediction.
        """
        classes = len(self.counts)
        labelled = truth >= 0
        truth, predicted = truth[labelled], predicted[labelled]
        if len(truth) and (max(truth.max(), predicted.max()) >= classes or predicted.min() < 0):
            raise ValueError(f"classes are 0 to {classes - 1}")
        self.counts += np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)
        self.unlabelled += int((~labelled).sum())

    @property
    def points(self) -> NDArray[np.int64]:
        """(K,) points that have each class."""
        points: NDArray[np.int64] = self.counts.sum(axis=1)
        return points

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union; NaN where the union is empty."""
        hits = self.counts.diagonal()
        return _ratio(hits, self.points + self.counts.sum(axis=0) - hits)

    def miou(self, absent: Absent) -> float:
        """Mean IoU over classes; NaN where none is left."""
        iou = self.iou
        if absent == "one":
            return float(np.nan_to_num(iou, nan=1.0).mean())
        return _mean(iou)

    @property
    def accuracy(self) -> float:
        """Share of labelled points whose class is right; NaN without any."""
        return float(_ratio(self.counts.trace(), self.counts.sum()))

    @property
    def class_accuracy(self) -> float:
        """Mean, over classes that occur, of the share of their points that is found."""
        return _mean(_ratio(self.counts.diagonal(), self.points))


def _ratio(hits: NDArray[np.int64] | np.int64, total: NDArray[np.int64] | np.int64) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(hits / total, np.float64)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
