"""Neighbours' votes against scikit-learn's, class means against its nearest centroid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier

from hilda_train.evaluate import nearest
from hilda_train.evaluate.nearest import ClassMeans, knn_classes, prototype_classes


def clusters(seed, count, classes=5, channels=8):
    """Overlapping clusters, of rows of very different lengths."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(classes, channels))
    rows = (centres[label] + rng.normal(size=(count, channels))) * rng.uniform(0.1, 10, (count, 1))
    return torch.from_numpy(rows), torch.from_numpy(label)


@given(st.integers(0, 1000), st.integers(1, 30), st.sampled_from([0.07, 0.5]))
def test_neighbours_vote_as_scikit_learns_do(seed, k, temperature):
    bank, label = clusters(seed, 60)
    feats, _ = clusters(seed + 1, 40)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature))
    expected = theirs.fit(bank.numpy(), label.numpy()).predict(feats.numpy())
    np.testing.assert_array_equal(knn_classes(feats, bank, label, 5, k, temperature).numpy(), expected)


def test_chunks_change_nothing(monkeypatch):
    (bank, label), (feats, _) = clusters(0, 200), clusters(1, 101)
    whole = knn_classes(feats, bank, label, 5)
    monkeypatch.setattr(nearest, "CHUNK", 7)
    torch.testing.assert_close(knn_classes(feats, bank, label, 5), whole)


def test_fewer_labelled_features_than_neighbours_and_none_to_judge():
    bank, label = clusters(0, 3)
    assert len(knn_classes(bank, bank, label, 5, k=20)) == 3
    assert len(knn_classes(bank[:0], bank, label, 5)) == 0


def test_one_neighbour_finds_itself():
    bank, label = clusters(3, 50)
    torch.testing.assert_close(knn_classes(3.0 * bank, bank, label, 5, k=1), label)


@given(st.integers(0, 1000))
def test_class_means_are_the_means_of_unit_rows_and_the_nearest_is_chosen(seed):
    bank, label = clusters(seed, 80)
    feats, _ = clusters(seed + 1, 30)
    means = ClassMeans(6, 8)  # the last class never occurs
    means.add(bank[:50], label[:50])
    means.add(bank[50:], torch.where(torch.arange(30) < 3, -1, label[50:]))
    counted = np.r_[0:50, 53:80]
    unit = bank.numpy() / np.linalg.norm(bank.numpy(), axis=1, keepdims=True)
    expected = np.stack([unit[counted][label.numpy()[counted] == k].mean(axis=0) for k in range(5)])
    prototypes = means.prototypes()
    assert prototypes[5].isnan().all()
    np.testing.assert_allclose(prototypes[:5].norm(dim=1), 1, rtol=1e-6)
    cosine = cosine_similarity(feats.numpy(), expected)
    np.testing.assert_array_equal(prototype_classes(feats.float(), prototypes).numpy(), cosine.argmax(axis=1))


def test_a_prototype_of_another_length_scores_by_its_product():
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert prototype_classes(torch.tensor([[2.0, 1.0], [4.0, 1.0]]), prototypes).tolist() == [1, 0]


@pytest.mark.parametrize("never", [0, 1])
def test_a_class_without_a_prototype_is_never_chosen(never):
    prototypes = -torch.eye(2)
    prototypes[never] = torch.nan
    assert prototype_classes(torch.eye(2), prototypes).tolist() == [1 - never] * 2
