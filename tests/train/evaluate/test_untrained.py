"""`hilda-train knn` and `zeroshot` on a toy run, against scikit-learn and NumPy on features computed here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.spatial import cKDTree
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier

from hilda_schema import open_cache
from hilda_schema.errors import TrainError, UsageError
from hilda_train.evaluate.commands import Asked
from hilda_train.evaluate.restore import restore_run
from hilda_train.evaluate.untrained_commands import knn, zeroshot


@pytest.fixture
def asked(short_run, toy_cache, toy_classes):
    """A question about the toy run."""
    return Asked("probe", str(short_run), (str(toy_cache),), toy_classes, "scalr", as_json=True)


@pytest.fixture
def seen(short_run, toy_cache, in_range_of):
    """seen(scene) -> frames with (F, 3) points, (F,) classes, (F,) in range, and (N, C) features of those in range."""
    restored = restore_run(short_run, [str(toy_cache)])

    def frames(scene):
        for clip in (*restored.prepared.clips, *restored.held_out):
            frame = restored.prepared.caches[0][clip.current]
            if frame.key.scene != scene or not len(frame.points):
                continue
            batch, _ = restored.batch(clip)
            with torch.no_grad():
                level = restored.learner.student.encode(batch.points)[-1]
            mine = (batch.points.batch_index == batch.points.batch_size - 1).numpy()
            inside = in_range_of(restored, frame.points.xyz_m)
            yield frame, frame.points.label.astype(int) - 1, inside, level.at_points()[mine]

    return restored, frames


def judged(frames, predict):
    """Confusion counts over all points: those out of range take the nearest one's class."""
    truths, found = [], []
    for frame, truth, inside, feats in frames:
        predicted = np.zeros(len(truth), int)
        predicted[inside] = predict(feats)
        _, nearest = cKDTree(frame.points.xyz_m[inside]).query(frame.points.xyz_m[~inside])
        predicted[~inside] = predicted[inside][nearest]
        truths.append(truth)
        found.append(predicted)
    return confusion_matrix(np.concatenate(truths), np.concatenate(found), labels=[0, 1]).tolist()


def result_of(capsys):
    return json.loads(capsys.readouterr().out)


def test_neighbours_are_scikit_learns_over_all_points(asked, seen, capsys):
    _, frames = seen
    bank = list(frames("scene-0000"))
    rows = torch.cat([feats for *_, feats in bank]).numpy()
    labels = np.concatenate([truth[inside] for _, truth, inside, _ in bank])
    voters = KNeighborsClassifier(7, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(rows, labels)
    knn(asked, 7)
    result = result_of(capsys)
    mine = judged(frames("scene-0001"), lambda feats: voters.predict(feats.numpy()))
    # features in float32 here, cosines in another order there: near ties may fall to either side
    assert np.abs(np.array(result["confusion"]) - mine).max() <= 2
    assert result["evaluation"] == "knn"
    assert result["points"]["judged"] == np.sum(mine)


def test_prototypes_are_the_teachers_class_means(asked, seen, toy_cache, capsys):
    restored, frames = seen
    layer, head = restored.prepared.tokens.layers[-1], restored.learner.point.heads[-1]
    sums = np.zeros((2, restored.prepared.widths[-1]))
    for frame, truth, inside, _ in frames("scene-0000"):
        kept = inside[frame.pairs.point]
        rows = frame.point_features(layer.teacher, layer=layer.layer)[kept].astype(float)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.add.at(sums, truth[frame.pairs.point[kept]], rows)
    means = sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def predict(feats):
        with torch.no_grad():
            return (head(feats).numpy() @ means.T).argmax(axis=1)

    zeroshot(asked, None, None)
    result = result_of(capsys)
    assert np.abs(np.array(result["confusion"]) - judged(frames("scene-0001"), predict)).max() <= 2
    assert result["target"] == f"{layer.teacher}/{layer.layer}"


def test_vectors_of_a_file_and_the_head_of_another_level(asked, seen, tmp_path, capsys):
    restored, frames = seen
    rng = np.random.default_rng(0)
    layer, width = restored.prepared.tokens.layers[0], restored.prepared.widths[0]
    vectors = {name: rng.normal(size=width).astype(np.float32) for name in ("post", "road", "unused")}
    save_file(vectors, tmp_path / "names.safetensors")
    zeroshot(asked, tmp_path / "names.safetensors", f"{layer.teacher}/{layer.layer}")
    found = np.array(result_of(capsys)["confusion"])

    restored.learner.student.encode = lambda points, encode=restored.learner.student.encode: encode(points)[:1]
    mine = np.stack([vectors["road"], vectors["post"]])  # in the order of the class file

    def predict(feats):
        with torch.no_grad():
            return (restored.learner.point.heads[0](feats).numpy() @ mine.T).argmax(axis=1)

    assert np.abs(found - judged(frames("scene-0001"), predict)).max() <= 2


def test_files_that_do_not_fit(asked, seen, tmp_path):
    width = seen[0].prepared.widths[-1]
    path = tmp_path / "names.safetensors"
    with pytest.raises(UsageError, match="cannot read"):
        zeroshot(asked, path, None)
    path.write_bytes(b"{}")
    with pytest.raises(UsageError, match="cannot read"):
        zeroshot(asked, path, None)
    save_file({"road": np.ones(width, np.float32)}, path)
    with pytest.raises(UsageError, match="has no vector of post"):
        zeroshot(asked, path, None)
    save_file({name: np.ones(width + 1, np.float32) for name in ("road", "post")}, path)
    with pytest.raises(UsageError, match=rf"shape \({width + 1},\), the head gives {width} channels"):
        zeroshot(asked, path, None)
    with pytest.raises(UsageError, match="this run learnt"):
        zeroshot(asked, None, "vit/99")


def test_a_run_without_a_head(fit, toy_cache, toy_classes, tmp_path):
    out = tmp_path / "headless"
    assert fit(out, "train.max_steps=2", "objectives.point.weight=0", "data.held_out=[scene-0001]") == 0
    with pytest.raises(TrainError, match="no head"):
        zeroshot(Asked("probe", str(out), (str(toy_cache),), toy_classes, "scalr"), None, None)
    assert len(open_cache(toy_cache)) == 10


def test_only_runs_have_heads(toy_cache, toy_classes, tmp_path):
    with pytest.raises(UsageError, match="there is no run"):
        zeroshot(Asked("probe", str(tmp_path / "no"), (str(toy_cache),), toy_classes, "scalr"), None, None)
