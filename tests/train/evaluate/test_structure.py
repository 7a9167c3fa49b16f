"""Structure measures against loops, other formulations and known values; the command against rows read by hand."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from hilda_schema import open_cache
from hilda_schema.errors import UsageError
from hilda_train.evaluate import structure_commands
from hilda_train.evaluate.restore import restore_run
from hilda_train.evaluate.structure import gram_gap, linear_cka, rankme, tolerance, uniformity, zeroshot_accuracy

seeds = st.integers(0, 2**32 - 1)


def rows_of(seed, n=7, channels=4):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, channels)))


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rotation(seed, channels):
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, channels)))[0])


@given(seeds)
def test_pairwise_measures_are_means_over_ordered_pairs(seed):
    k, q = rows_of(seed), rows_of(seed + 1, channels=3)
    label = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, len(k)))
    a, b = unit(k), unit(q)
    pairs = [(i, j) for i, j in itertools.product(range(len(a)), repeat=2) if i != j]
    gap = np.mean([abs(a[i] @ a[j] - b[i] @ b[j]) for i, j in pairs])
    spread = np.log(np.mean([np.exp(-2 * np.sum((a[i] - a[j]) ** 2)) for i, j in pairs]))
    same = [a[i] @ a[j] for i, j in pairs if label[i] == label[j]]
    assert gram_gap(k, q) == pytest.approx(gap, rel=1e-12)
    assert uniformity(k) == pytest.approx(spread, rel=1e-9)
    assert tolerance(k, label) == pytest.approx(np.mean(same), rel=1e-9)


@given(seeds)
def test_cka_is_the_alignment_of_centred_gram_matrices(seed):
    """Kornblith et al. give both forms; this one centres N x N matrices and never forms a C x C one."""
    k, q = rows_of(seed), rows_of(seed + 1, channels=3)
    centring = np.eye(len(k)) - 1 / len(k)
    grams = [centring @ (unit(rows) @ unit(rows).T) @ centring for rows in (k, q)]
    hsic = np.trace(grams[0] @ grams[1])
    assert linear_cka(k, q) == pytest.approx(hsic / math.prod(np.linalg.norm(g) for g in grams), rel=1e-9)


@given(seeds)
def test_rankme_is_the_exponential_of_an_entropy_that_numpy_finds_too(seed):
    k = rows_of(seed)
    singular = np.linalg.svd(unit(k), compute_uv=False)
    share = singular / singular.sum() + 1e-7
    assert rankme(k) == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-9)


@given(seeds)
def test_zero_shot_is_scikit_learns_balanced_accuracy_of_the_nearest_teacher_mean(seed):
    student, teacher = rows_of(seed, n=40), rows_of(seed + 1, n=40)
    label = np.random.default_rng(seed).choice([3, 5, 9], 40)
    means = [unit(teacher)[label == name].mean(axis=0) for name in (3, 5, 9)]
    predicted = np.array([3, 5, 9])[cosine_similarity(student.numpy(), means).argmax(axis=1)]
    found = zeroshot_accuracy(student, teacher, torch.from_numpy(label))
    assert found == pytest.approx(balanced_accuracy_score(label, predicted))


@given(seeds, st.floats(1e-3, 1e3))
def test_rotation_scale_and_the_order_of_rows_change_nothing(seed, scale):
    k, q = rows_of(seed), rows_of(seed + 1, channels=3)
    label = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, len(k)))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(k)))
    turned = (scale * k @ rotation(seed, k.shape[1]))[order]
    assert gram_gap(turned, q[order]) == pytest.approx(gram_gap(k, q), abs=1e-9)
    assert linear_cka(turned, q[order]) == pytest.approx(linear_cka(k, q), abs=1e-9)
    assert uniformity(turned) == pytest.approx(uniformity(k), abs=1e-9)
    assert tolerance(turned, label[order]) == pytest.approx(tolerance(k, label), abs=1e-9)
    assert rankme(turned) == pytest.approx(rankme(k), abs=1e-6)


def test_a_rotated_teacher_has_no_gap_and_full_alignment():
    q = rows_of(0, n=50)
    k = 3.0 * q @ rotation(1, 4)
    assert gram_gap(k, q) == pytest.approx(0, abs=1e-12)
    assert linear_cka(k, q) == pytest.approx(1)


def test_orthonormal_rows():
    eye = torch.eye(6)
    assert uniformity(eye) == pytest.approx(-4)  # |a - b|^2 = 2
    assert rankme(eye) == pytest.approx(6, rel=1e-5)
    assert tolerance(eye, torch.zeros(6, dtype=torch.int64)) == pytest.approx(0)
    assert gram_gap(eye, torch.ones(6, 2)) == pytest.approx(1)


def test_collapsed_rows():
    one = torch.tensor([[3.0, 4.0]]).repeat(5, 1)
    assert uniformity(one) == pytest.approx(0, abs=1e-9)
    assert rankme(one) == pytest.approx(1, rel=1e-4)
    assert tolerance(one, torch.arange(5) // 2) == pytest.approx(1)
    assert math.isnan(linear_cka(one, torch.eye(5)))


def test_no_class_with_two_rows_has_no_tolerance():
    assert math.isnan(tolerance(torch.eye(3), torch.arange(3)))


def command(capsys, run, cache, *, steps=(), scenes=(), plot=None):
    structure_commands.structure(run, [str(cache)], steps, scenes, plot, as_json=True)
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def several(fit, tmp_path):
    """A run with checkpoints at steps 3 and 6."""
    out = tmp_path / "several"
    assert fit(out, "data.held_out=[scene-0001]") == 0
    return out


def test_numbers_are_those_of_rows_read_from_the_cache(several, toy_cache, capsys, monkeypatch, in_range_of):
    """With more pairs allowed than there are, the teacher's rows are all pairs of the held-out sweeps."""
    monkeypatch.setattr(structure_commands, "PAIRS", 10**6)
    found = command(capsys, several, toy_cache)["steps"][0]["targets"]
    restored, cache = restore_run(several, [str(toy_cache)]), open_cache(toy_cache)
    layer = restored.prepared.tokens.layers[-1]
    rows, labels = [], []
    for clip in restored.held_out:
        frame = cache[clip.current]
        kept = in_range_of(restored, frame.points.xyz_m)[frame.pairs.point]
        rows.append(frame.point_features(layer.teacher, layer=layer.layer)[kept])
        labels.append(frame.points.label[frame.pairs.point[kept]])
    teacher, label = torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(labels).astype(int))
    judged = found[f"{layer.teacher}/{layer.layer}"]["teacher"]
    assert judged["rankme"] == pytest.approx(rankme(teacher), rel=1e-4)
    assert judged["uniformity"] == pytest.approx(uniformity(teacher), rel=1e-4)
    assert judged["tolerance"] == pytest.approx(tolerance(teacher, label), rel=1e-4)


def test_a_curve_has_the_newest_checkpoint_last_and_the_same_teacher_everywhere(several, toy_cache, capsys, tmp_path):
    found = command(capsys, several, toy_cache, steps=(6, 3), plot=tmp_path / "curve.png")
    assert [each["step"] for each in found["steps"]] == [3, 6]
    early, late = (each["targets"] for each in found["steps"])
    assert late == command(capsys, several, toy_cache)["steps"][0]["targets"]
    for target, parts in early.items():
        assert parts["teacher"] == late[target]["teacher"]
        assert parts["student"] != late[target]["student"]
        assert parts["student"].keys() == {"gram_gap", "cka", *parts["teacher"]}
        assert parts["student"].keys() - parts["backbone"].keys() == {"zeroshot"}
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_scenes_are_those_asked_for(several, toy_cache, capsys):
    held_out = command(capsys, several, toy_cache)
    assert command(capsys, several, toy_cache, scenes=("scene-0001",)) == held_out
    assert command(capsys, several, toy_cache, scenes=("scene-0000",))["steps"] != held_out["steps"]


def test_mistakes(several, toy_cache, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"no checkpoint of step 4.*there are 3, 6"):
        command(capsys, several, toy_cache, steps=(4,))
    with pytest.raises(UsageError, match=r"no frame is in a scene called kitti\*"):
        command(capsys, several, toy_cache, scenes=("kitti*",))
    with pytest.raises(UsageError, match="two checkpoints"):
        command(capsys, several, toy_cache, steps=(3,), plot=tmp_path / "x.png")
