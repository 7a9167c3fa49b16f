"""Scores against scikit-learn, over any way of adding points up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from hilda_train.evaluate.metrics import Confusion

CLASSES = 5
sizes = st.integers(1, 60)


@st.composite
def predictions(draw):
    """(N,) true classes, -1 for none, and (N,) predicted ones; classes may be missing in either."""
    n = draw(sizes)
    truth = draw(arrays(np.int64, n, elements=st.integers(-1, CLASSES - 1)))
    return truth, draw(arrays(np.int64, n, elements=st.integers(0, CLASSES - 1)))


def counted(truth, predicted):
    confusion = Confusion(CLASSES)
    confusion.add(truth, predicted)
    return confusion


@given(predictions())
def test_scores_are_scikit_learns(drawn):
    truth, predicted = drawn
    confusion, known = counted(truth, predicted), truth >= 0
    truth, predicted = truth[known], predicted[known]
    assert confusion.unlabelled == (~known).sum()
    if not known.any():
        assert np.isnan(confusion.accuracy)
        assert np.isnan(confusion.iou).all()
        return
    labels = np.arange(CLASSES)
    np.testing.assert_array_equal(confusion.counts, confusion_matrix(truth, predicted, labels=labels))
    # A union is empty exactly where the class is in neither; scikit-learn then gives what it is told.
    occurring = np.union1d(truth, predicted)
    expected = jaccard_score(truth, predicted, labels=labels, average=None, zero_division=0)
    np.testing.assert_allclose(confusion.iou[occurring], expected[occurring])
    assert np.isnan(np.delete(confusion.iou, occurring)).all()
    assert confusion.miou("left out") == pytest.approx(
        jaccard_score(truth, predicted, labels=occurring, average="macro", zero_division=0)
    )
    ones = np.append(expected[occurring], np.ones(CLASSES - len(occurring)))
    assert confusion.miou("one") == pytest.approx(ones.mean())
    assert confusion.accuracy == pytest.approx(accuracy_score(truth, predicted))


@given(predictions())
def test_class_accuracy_is_scikit_learns_recall(drawn):
    truth, predicted = drawn
    known = truth >= 0
    if known.any():
        occurring = np.unique(truth[known])
        expected = recall_score(truth[known], predicted[known], labels=occurring, average="macro", zero_division=0)
        assert counted(truth, predicted).class_accuracy == pytest.approx(expected)


@given(predictions(), predictions())
def test_two_sweeps_count_as_one_long_one(first, second):
    confusion = counted(*first)
    confusion.add(*second)
    whole = counted(*(np.concatenate(both) for both in zip(first, second, strict=True)))
    np.testing.assert_array_equal(confusion.counts, whole.counts)
    assert confusion.unlabelled == whole.unlabelled


def test_counts_are_exact_where_float32_is_not():
    confusion = Confusion(2)
    confusion.counts[0, 0] = 2**24
    confusion.add(np.array([0]), np.array([0]))
    assert confusion.points[0] == 2**24 + 1  # the published code counts in float32, where this is 2**24


@pytest.mark.parametrize(("truth", "predicted"), [(5, 0), (0, 5), (0, -1)])
def test_a_class_that_does_not_exist_is_refused(truth, predicted):
    with pytest.raises(ValueError, match="classes are 0 to 4"):
        counted(np.array([truth]), np.array([predicted]))
