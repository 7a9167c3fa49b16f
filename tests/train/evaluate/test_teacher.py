"""`hilda-train probe teacher`: features of points, what is drawn, what is judged, mistakes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from typer.testing import CliRunner

from hilda_schema import open_cache
from hilda_schema.content import Pairs
from hilda_schema.errors import HildaError
from hilda_schema.testing import tiny_parts, tiny_recipe
from hilda_schema.writer import finish_store, start_store, write_part
from hilda_train.cli import app
from hilda_train.data.tokens import TeacherLayer
from hilda_train.evaluate.classes import load_classes
from hilda_train.evaluate.commands import Asked, segmentation
from hilda_train.evaluate.head import Encoded, SegmentationHead, segmentation_loss
from hilda_train.evaluate.teacher import TeacherFrames, TeacherOptions, find_layer, join_points

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def torch_as_it_was():
    """Undo what an evaluation changes in torch for the whole process."""
    mode = torch.get_deterministic_debug_mode()
    yield
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture
def layer(toy_cache):
    """The toy cache's last layer."""
    (name, teacher), *_ = open_cache(toy_cache).teachers.items()
    return TeacherLayer(name, teacher.layers[-1].name)


@pytest.fixture
def asked(toy_cache, toy_classes, layer):
    """A probe of the toy cache's teacher."""
    return Asked(
        "probe", "teacher", (str(toy_cache),), toy_classes, "quick", test_scenes=("scene-0001",),
        assignments=("probe.epochs=3",), device="cpu", layer=f"{layer.teacher}/{layer.layer}",
    )  # fmt: skip


def mean_over_cameras(frame, layer):
    """(F, D) by a loop over pairs; NaN where no pair has a feature."""
    features = frame.point_features(layer.teacher, layer=layer.layer)
    found = [[] for _ in range(len(frame.points))]
    for point, feature in zip(frame.pairs.point, features, strict=True):
        if not np.isnan(feature).any():
            found[point].append(feature.astype(np.float64))
    nothing = np.full(features.shape[1], np.nan)
    return np.array([np.mean(each, axis=0) if each else nothing for each in found]).reshape(
        len(found), features.shape[1]
    )


def seen_twice(frame):
    """A frame whose points of the first camera are seen by the last one too, at other pixels."""
    pairs = frame.pairs
    again = np.flatnonzero(pairs.camera == 0)
    kept = np.flatnonzero(pairs.camera < 2)
    point, depth_m, visible = (np.concatenate([a[kept], a[again]]) for a in (pairs.point, pairs.depth_m, pairs.visible))
    camera = np.concatenate([pairs.camera[kept], np.full(len(again), 2, np.uint8)])
    uv_px = np.concatenate([pairs.uv_px[kept], pairs.uv_px[again][::-1] / 2])
    return replace(frame, pairs=Pairs(point, camera, uv_px, depth_m, visible))


@pytest.mark.parametrize("kind", ["grid", "point"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_points_feature_is_the_mean_over_the_cameras_that_see_it(tmp_path, toy_classes, layer, kind, dtype):
    recipe, store = tiny_recipe(kind, dtype), tmp_path / "cache"
    parts = tiny_parts(recipe, scenes=2, frames=3, points=100)
    parts = [replace(part, frames=tuple(map(seen_twice, part.frames))) for part in parts]
    start_store(store, recipe, planned_parts=len(parts))
    finish_store(store, recipe, [write_part(store, recipe, part) for part in parts])
    cache, classes = open_cache(store), load_classes(toy_classes)
    _, width = find_layer(f"{layer.teacher}/{layer.layer}", [cache])
    options = TeacherOptions(layer, width, classes, seed=0, most=None)
    items = TeacherFrames([str(store)], [(0, row) for row in range(len(cache))], options)
    several = alone = 0
    for row, frame in enumerate(cache):
        expected = mean_over_cameras(frame, layer)
        known = ~np.isnan(expected[:, :1]).any(axis=1)
        found = items[0, row, row]
        np.testing.assert_allclose(found.feats.numpy(), expected[known], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.target.numpy() + 1, frame.points.label[known])
        assert found.unseen == (~known).sum()
        cameras = np.bincount(frame.pairs.point, minlength=1)
        several, alone = several + (cameras > 1).sum(), alone + (cameras == 1).sum()
    assert several > 0 < alone


def test_an_epoch_draws_other_labelled_points_and_never_more_than_it_may(toy_cache, toy_classes, layer):
    cache, classes = open_cache(toy_cache), load_classes(toy_classes)
    _, width = find_layer(f"{layer.teacher}/{layer.layer}", [cache])
    few = TeacherOptions(layer, width, classes, seed=0, most=5)
    drawn, everyone = (TeacherFrames([str(toy_cache)], [(0, 0)], each) for each in (few, replace(few, most=None)))
    first, again, later = drawn[0, 0, 0], drawn[0, 0, 0], drawn[1, 0, 0]
    assert len(first.target) == 5
    assert torch.equal(first.feats, again.feats)
    assert not torch.equal(first.feats, later.feats)
    rows = {tuple(row) for row in everyone[0, 0, 0].feats.tolist()}
    assert {tuple(row) for row in first.feats.tolist()} <= rows
    both = join_points([first, later])
    assert torch.equal(both.feats, torch.cat([first.feats, later.feats]))
    assert torch.equal(both.target, torch.cat([first.target, later.target]))


def test_scores_are_scikit_learns_over_every_labelled_point_that_a_camera_sees(asked, toy_cache, layer, tmp_path):
    result, scores = segmentation(replace(asked, predictions=tmp_path / "x.npz"), CPU)
    frames = [frame for frame in open_cache(toy_cache) if frame.key.scene == "scene-0001"]
    seen = [~np.isnan(mean_over_cameras(frame, layer)[:, :1]).any(axis=1) for frame in frames]
    truth = np.concatenate([each.truth for each in scores.predictions])
    predicted = np.concatenate([each.predicted for each in scores.predictions])
    labels = np.concatenate([frame.points.label[each] for frame, each in zip(frames, seen, strict=True)])
    np.testing.assert_array_equal(truth + 1, labels)
    assert result["miou"] == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    assert result["visible"] == {"miou": result["miou"], "points": len(truth)}
    unseen = sum(int((~each).sum()) for each in seen)
    assert unseen > 0
    assert result["points"] == {"judged": len(truth), "without_label": 0, "from_nearest": 0, "without_camera": unseen}
    root = open_cache(toy_cache).manifest.root_sha256
    assert result["weights"] == {
        "kind": "teacher", "teacher": layer.teacher, "layer": layer.layer,
        "caches": [{"dataset": "toy", "root_sha256": root}],
    }  # fmt: skip
    assert json.dumps(result) == json.dumps(segmentation(asked, CPU)[0])  # the same bits twice


def test_the_scenes_of_a_run_are_those_that_it_held_out(asked, short_run):
    asked = replace(asked, test_scenes=(), like=str(short_run))
    assert segmentation(asked, CPU)[0]["test"]["scenes"] == ["scene-0001"]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_without_two_labelled_points_costs_nothing(rows):
    head = SegmentationHead(3, 2, norm=True, steady=True).train()
    segmentation_loss(head, Encoded(torch.ones(rows, 3), None, torch.zeros(rows, dtype=torch.int64)), 1.0).backward()
    assert not head.linear.weight.grad.any()
    assert torch.equal(head.norm.running_mean, torch.zeros(3))


MISTAKES = {
    "no layer": ({"layer": None}, "which layer of which teacher?", "/"),
    "layer": ({"layer": "nobody/9"}, "has no layer nobody/9", "/"),
    "scenes": ({"test_scenes": ()}, "nothing says on which scenes a teacher is tested", "--like RUN"),
    "like": ({"like": "nowhere"}, "nowhere", ""),
    "fine-tuning": ({"evaluation": "finetune"}, "can be probed only", "--layer"),
    "layer of a run": ({"what": "random", "like": "demo"}, "--layer is for the probe of a teacher", "leave it out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(asked, name, layer):
    changes, said, remedy = MISTAKES[name]
    if changes.get("evaluation") == "finetune":
        changes = {**changes, "layer": None}
    with pytest.raises(HildaError, match=said) as raised:
        segmentation(replace(asked, **changes), CPU)
    assert remedy in raised.value.remedy
    if "layer" in name and name != "layer of a run":
        assert f"{layer.teacher}/{layer.layer}" in raised.value.remedy


def test_the_command_prints_a_table(asked, toy_cache, toy_classes, layer):
    words = [
        "probe",
        "teacher",
        "-c",
        str(toy_cache),
        "--classes",
        toy_classes,
        "--protocol",
        "quick",
        "--device",
        "cpu",
    ]
    words += ["--test-scenes", "scene-0001", "--layer", f"{layer.teacher}/{layer.layer}", "--set", "probe.epochs=2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"probe of teacher {layer.teacher}/{layer.layer} (quick, toy, seed 0)" in done.stdout
    assert "mIoU where a camera sees" in done.stdout
    assert "that no camera sees" in done.stdout
