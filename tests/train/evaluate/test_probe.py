"""`hilda-train probe` and `finetune` on a toy run: scores, bits, splits, mistakes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from typer.testing import CliRunner

from hilda_schema import open_cache
from hilda_schema.errors import HildaError, UsageError
from hilda_train.cli import app
from hilda_train.evaluate.backbones import config_of, load_subject, sha256_of
from hilda_train.evaluate.commands import Asked, evaluate, segmentation

CPU = torch.device("cpu")
FEW = ("probe.epochs=8", "finetune.steps=3")


@pytest.fixture(scope="module", autouse=True)
def torch_as_it_was():
    """Undo what an evaluation changes in torch for the whole process."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture
def asked(short_run, toy_cache, toy_classes):
    """A probe of the toy run."""
    return Asked("probe", str(short_run), (str(toy_cache),), toy_classes, "quick", assignments=FEW, device="cpu")


def result_of(asked):
    return segmentation(asked, CPU)[0]


def test_scores_are_scikit_learns_on_the_saved_predictions(asked, toy_cache, tmp_path, capsys):
    out, saved = tmp_path / "deep" / "out.json", tmp_path / "predicted.npz"
    evaluate(replace(asked, out=out, predictions=saved, as_json=True))
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    with np.load(saved) as file:
        keys, starts, truth, predicted = (file[name] for name in ("keys", "starts", "truth", "predicted"))
    assert result["miou"] == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    for row, iou in zip(result["per_class"], jaccard_score(truth, predicted, average=None), strict=True):
        assert row["iou"] == pytest.approx(iou)
    assert result["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert [row["name"] for row in result["per_class"]] == ["road", "post"]

    # every point of the held-out scene, in order, has its own label: also those that the student does not see
    cache = open_cache(toy_cache)
    held_out = [frame for frame in cache if frame.key.scene == "scene-0001"]
    assert keys.tolist() == [str(frame.key) for frame in held_out]
    np.testing.assert_array_equal(truth + 1, np.concatenate([frame.points.label for frame in held_out]))
    np.testing.assert_array_equal(starts, np.cumsum([0] + [len(frame.points) for frame in held_out]))
    low, high = config_of(asked.what, None).student.range_m
    outside = sum(int((~((f.points.xyz_m >= low) & (f.points.xyz_m < high)).all(1)).sum()) for f in held_out)
    assert outside > 0
    assert result["points"] == {
        "judged": len(truth), "without_label": 0, "from_nearest": outside, "without_camera": 0,
    }  # fmt: skip
    assert sum(map(sum, result["confusion"])) == len(truth)

    # and some of them are seen by a camera
    seen = np.concatenate([np.isin(np.arange(len(f.points)), f.pairs.point) for f in held_out])
    assert 0 < seen.sum() < len(seen)
    scores = jaccard_score(truth[seen], predicted[seen], average="macro")
    assert result["visible"] == {"miou": pytest.approx(scores), "points": int(seen.sum())}
    assert result["visible"]["miou"] != result["miou"]


def test_points_that_the_student_does_not_see_read_their_nearest(asked, toy_cache, tmp_path):
    from scipy.spatial import cKDTree

    _, scores = segmentation(replace(asked, predictions=tmp_path / "x.npz"), CPU)
    low, high = config_of(asked.what, None).student.range_m
    cache, checked = open_cache(toy_cache), 0
    for each in scores.predictions:
        xyz_m = cache.find(each.key).points.xyz_m
        seen = ((xyz_m >= low) & (xyz_m < high)).all(1)
        if len(xyz_m):
            _, nearest = cKDTree(xyz_m[seen]).query(xyz_m[~seen])
            np.testing.assert_array_equal(each.predicted[~seen], each.predicted[seen][nearest])
            checked += len(nearest)
    assert checked


def test_fine_tuning_learns_what_eight_frozen_channels_do_not_say(asked):
    """Labels follow from a point's height, an input: a backbone that may learn finds them."""
    long = ("probe.epochs=40", "finetune.steps=80", "finetune.optim.lr=0.02")
    probe = result_of(replace(asked, assignments=long))
    tuned = result_of(replace(asked, evaluation="finetune", assignments=long))
    assert probe["miou"] < 0.75 < 0.85 < tuned["miou"]


@pytest.mark.parametrize("evaluation", ["probe", "finetune"])
@pytest.mark.parametrize("protocol", ["quick", "scalr"])
def test_two_runs_with_one_seed_are_the_same_bits(asked, evaluation, protocol):
    """With augmentation, thinning and drop path (the toy student has it), and without."""
    length = "finetune.epochs=5" if protocol == "scalr" else "finetune.steps=5"
    again = replace(asked, evaluation=evaluation, protocol=protocol, share_percent=50, split="frames",
                    assignments=("probe.epochs=3", length, "max_points=150"))  # fmt: skip
    first, second = result_of(again), result_of(again)
    assert first == second
    if protocol == "scalr":
        assert result_of(replace(again, seed=1))["training"] != first["training"]


def test_features_that_are_kept_teach_what_features_that_are_made_anew_teach(asked):
    still = "augment={rotation_deg: 0, flip: 0, scale: 0}"
    kept, anew = (result_of(replace(asked, assignments=(*FEW, *more))) for more in ((), (still,)))
    np.testing.assert_allclose(kept["training"]["loss_of_epochs"], anew["training"]["loss_of_epochs"], rtol=1e-4)
    half = result_of(replace(asked, assignments=(*FEW, "keep=float16")))
    np.testing.assert_allclose(kept["training"]["loss_of_epochs"], half["training"]["loss_of_epochs"], rtol=0.02)
    assert half["training"] != kept["training"]


@pytest.mark.slow
def test_workers_change_nothing(asked):
    short = replace(asked, protocol="scalr", assignments=("probe.epochs=3", "probe.batch_size=2"))
    assert result_of(replace(short, workers=1)) == result_of(short)


def test_random_weights_are_others_follow_from_the_seed_and_are_not_the_runs(asked, short_run):
    like = replace(asked, what="random", like=str(short_run), test_scenes=("scene-0001",))
    shas = {seed: result_of(replace(like, seed=seed))["weights"]["sha256"] for seed in (0, 1)}
    own = result_of(asked)["weights"]
    assert len({*shas.values(), own["sha256"]}) == 3
    assert (own["kind"], own["name"], own["step"]) == ("run", short_run.name, 3)


def test_a_file_of_weights_is_the_run_that_it_was_exported_from(asked, short_run, tmp_path):
    from hilda_train.export import export_backbone, load_backbone

    export_backbone(load_backbone(short_run), "safetensors", tmp_path / "exported")
    (path,) = (tmp_path / "exported").glob("*.safetensors")
    from_file = result_of(replace(asked, what=str(path), like=str(short_run)))
    own = result_of(asked)
    assert from_file["weights"]["sha256"] == own["weights"]["sha256"]
    assert from_file["confusion"] == own["confusion"]


def test_a_probe_leaves_the_backbone_alone_and_a_fine_tuning_does_not(asked, monkeypatch):
    """Watched through the module that trains, which gets the model."""
    from hilda_train.evaluate import commands

    real, seen = commands.learn_and_test, []

    def watch(model, *rest):
        before = sha256_of(model.student)
        scores = real(model, *rest)
        seen.append(sha256_of(model.student) == before)
        return scores

    monkeypatch.setattr(commands, "learn_and_test", watch)
    result_of(asked)
    result_of(replace(asked, evaluation="finetune"))
    assert seen == [True, False]


def test_few_labels_are_named_in_the_result(asked):
    by_frames = result_of(replace(asked, evaluation="finetune", share_percent=25, split="frames"))
    assert by_frames["split"] == {"share_percent": 25, "rule": "frames", "of_frames": 5}
    assert by_frames["train"] == {"frames": 2, "scenes": ["scene-0000"]}
    by_scenes = result_of(replace(asked, evaluation="finetune", share_percent=25, split="scenes"))
    assert by_scenes["train"]["frames"] == 5
    assert by_scenes["split"]["rule"] == "scenes"


def test_a_scene_can_be_split_by_time(asked, toy_cache):
    found = result_of(replace(asked, train_scenes=("scene-0000",), test_scenes=("scene-0000",),
                              train_frames="0:3", test_frames="3:"))  # fmt: skip
    assert (found["train"]["frames"], found["test"]["frames"]) == (3, 2)
    assert found["train"]["scenes"] == found["test"]["scenes"] == ["scene-0000"]


def test_scenes_asked_for_testing_are_not_trained_on(asked):
    found = result_of(replace(asked, test_scenes=("scene-0000",)))
    assert (found["train"]["scenes"], found["test"]["scenes"]) == (["scene-0001"], ["scene-0000"])


def test_the_best_epoch_is_reported_where_the_protocol_says_so(asked):
    """The best is at least as good as the last; and what an epoch scores does not depend on which is reported."""
    best = result_of(replace(asked, assignments=(*FEW, "report=best")))
    epoch = best["training"]["tested_after_epoch"]
    last = result_of(asked)
    assert best["miou"] >= last["miou"]
    assert last["training"]["tested_after_epoch"] == 8
    assert best["training"]["loss_of_epochs"] == last["training"]["loss_of_epochs"]
    assert 1 <= epoch <= 8


MISTAKES = {
    "no labels": ({"caches": "unlabelled"}, "has labels (points/label)"),
    "class file": ({"classes": "nuscene16"}, "there is no class file 'nuscene16'"),
    "dataset": ({"classes": "nuscenes16"}, "say nothing of dataset 'toy'"),
    "scene": ({"test_scenes": ("scene-7*",)}, "no scene is called 'scene-7*' (--test-scenes)"),
    "overlap": ({"train_scenes": ("*",)}, "frames would be trained on and tested on"),
    "run": ({"what": "nowhere"}, "there is no run or file nowhere"),
    "like": ({"what": "random"}, "which backbone has random weights?"),
    "like and run": ({"like": "hilda"}, "which says itself what it is like"),
    "protocol": ({"protocol": "scaler"}, "there is no protocol 'scaler'"),
    "key": ({"assignments": ("probe.epoch=3",)}, "there is no key 'probe.epoch'"),
    "length": ({"assignments": ("probe.steps=3",)}, "a stage has epochs or steps"),
    "share": ({"evaluation": "finetune", "share_percent": 30}, "is not one k-th"),
    "nothing held out": (
        {"what": "random", "like": "hilda", "assignments": ("intensity.toy={mean: 0.5, std: 0.3}",)},
        "no scene was held out",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(asked, name, unlabelled_cache):
    changes, said = MISTAKES[name]
    if changes.get("caches"):
        changes = {"caches": (str(unlabelled_cache),)}
    with pytest.raises(HildaError) as raised:
        result_of(replace(asked, **changes))
    assert said in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [("predictions", "x.json", "does not end in .npz"), ("out", ".", "is a folder"), ("out", "file/x", "be written")],
)
def test_places_that_cannot_be_written_are_named_before_anything_is_read(asked, tmp_path, option, name, said):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=said):
        evaluate(replace(asked, caches=("nowhere",), **{option: tmp_path / name}))


def test_a_sensor_without_statistics_is_named_with_what_to_set(toy_cache, toy_classes):
    asked = Asked("probe", "random", (str(toy_cache),), toy_classes, "quick", like="demo", test_scenes=("scene-0001",))
    with pytest.raises(HildaError, match="no intensity statistics for toy") as raised:
        result_of(asked)
    assert "--set" in raised.value.remedy
    given = ("intensity.toy={mean: 0.5, std: 0.3}", "probe.epochs=1")
    assert result_of(replace(asked, assignments=given))["weights"]["kind"] == "random"


def test_the_command_prints_a_table(asked, short_run, toy_cache, toy_classes):
    words = ["probe", short_run, "-c", toy_cache, "--classes", toy_classes, "--protocol", "quick", "--device", "cpu"]
    done = CliRunner().invoke(app, [*map(str, words), "--set", "probe.epochs=2"])
    assert done.exit_code == 0, done.output
    assert f"probe of {short_run.name}, step 3 (quick, toy, seed 0)" in done.stdout
    assert "mIoU" in done.stdout
    words[0] = "finetune"
    done = CliRunner().invoke(
        app, [*map(str, words), "--set", "finetune.steps=2", "--share", "50", "--split", "frames"]
    )
    assert done.exit_code == 0, done.output
    assert "50 % by frames" in done.stdout


def test_load_subject_takes_the_moving_average(fit, tmp_path, weights):
    assert fit(tmp_path / "run", "train.max_steps=3", "train.ema=0.5") == 0
    config = config_of(str(tmp_path / "run"), None)
    state = load_subject(str(tmp_path / "run"), config, 0).student.state_dict()
    saved = weights(tmp_path / "run")
    assert all(torch.equal(tensor, saved["average", f"student.{name}"]) for name, tensor in state.items())
    assert any(not torch.equal(tensor, saved["model", f"student.{name}"]) for name, tensor in state.items())


@pytest.mark.gpu
@pytest.mark.parametrize("evaluation", ["probe", "finetune"])
def test_a_gpu_gives_the_same_bits_twice_and_nearly_those_of_the_cpu(asked, evaluation):
    asked = replace(asked, evaluation=evaluation, share_percent=100)
    first, second = (segmentation(asked, torch.device("cuda"))[0] for _ in range(2))
    assert first == second
    here = result_of(asked)
    np.testing.assert_allclose(first["training"]["loss_of_epochs"], here["training"]["loss_of_epochs"], rtol=0.01)
