"""`hilda-train detect`, `flow` and `occupancy` on a toy run: results, bits, splits, mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hilda_schema.errors import CacheConflict, HildaError, LabelError, UsageError
from hilda_schema.reader import open_cache
from hilda_train.cli import app
from hilda_train.evaluate.backbones import sha256_of
from hilda_train.evaluate.commands import Asked
from hilda_train.evaluate.detection.task import make_task as make_detection
from hilda_train.evaluate.flow.task import make_task as make_flow
from hilda_train.evaluate.heads import training
from hilda_train.evaluate.heads.commands import head_result, head_table
from hilda_train.evaluate.heads.items import FrameItems
from hilda_train.evaluate.semantic_occupancy.task import make_task as make_occupancy

CPU = torch.device("cpu")
TASKS = ("detect", "flow", "occupancy")
SMALL = ("probe.steps=3", "finetune.steps=3", "bev.channels=8", "bev.blocks=2", "bev.range_m=32", "bev.cell_m=4")


@pytest.fixture(scope="module", autouse=True)
def torch_as_it_was():
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture
def ask(short_run, toy_cache, toy_classes, toy_box_classes, toy_boxes):
    """ask(name, **changes) -> (what is asked, the task)."""

    def make(name, more=(), **changes):
        classes = {"detect": toy_box_classes, "flow": "", "occupancy": toy_classes}[name]
        own = ("gap_s=0.1", "horizon=2", "layers=2") if name == "occupancy" else ()
        asked = Asked("probe", str(short_run), (str(toy_cache),), classes, "quick", device="cpu",
                      assignments=(*SMALL, *own, *more))  # fmt: skip
        asked = replace(asked, **changes)
        tasks = {"detect": lambda: make_detection(asked, toy_boxes), "flow": lambda: make_flow(asked, toy_boxes),
                 "occupancy": lambda: make_occupancy(asked)}  # fmt: skip
        return asked, tasks[name]()

    return make


def result_of(pair):
    asked, task = pair
    return head_result(asked, task, CPU)


@pytest.mark.parametrize("evaluation", ["probe", "finetune"])
@pytest.mark.parametrize("name", TASKS)
def test_two_runs_with_one_seed_are_the_same_bits(ask, name, evaluation):
    augmented = ("augment={rotation_deg: 30, flip: 0.5, scale: 0.1}",)
    first, second = (result_of(ask(name, augmented, evaluation=evaluation)) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    assert first["backbone"] == {"probe": "frozen", "finetune": "finetuned"}[evaluation]
    assert result_of(ask(name, augmented, evaluation=evaluation, seed=1))["training"] != second["training"]


@pytest.mark.parametrize("name", TASKS)
def test_a_result_says_what_was_judged_on_what(ask, name, short_run):
    result = result_of(ask(name))
    assert result["evaluation"] == name
    assert result["weights"]["name"] == short_run.name
    assert result["train"]["scenes"] == ["scene-0000"]
    assert result["test"]["scenes"] == ["scene-0001"]
    frames = {"detect": 5, "flow": 4, "occupancy": 3}[name]  # the last has no next one, the first nothing before it
    assert result["train"]["frames"] == result["test"]["frames"] == frames
    assert result["training"]["steps"] == 3
    assert result["scores"][0]["unit"] in {"%", "m"}
    json.dumps(result, allow_nan=False)
    assert result["scores"][0]["name"] in head_table(result)


def test_loader_workers_open_the_content_that_was_looked_at(ask, toy_cache, monkeypatch):
    """A pin is honoured, and where none is given the content of the first look is the pin."""
    real, opened = FrameItems.__init__, set()

    def watch(self, urls, *rest):
        opened.update(urls)
        real(self, urls, *rest)

    monkeypatch.setattr(FrameItems, "__init__", watch)
    url = f"{toy_cache}@sha256:{open_cache(toy_cache).manifest.root_sha256}"
    result_of(ask("detect"))
    result_of(ask("detect", caches=(url[:-40],)))  # digits enough to name it
    assert opened == {url}
    with pytest.raises(CacheConflict, match="was asked for"):
        result_of(ask("detect", caches=(f"{toy_cache}@sha256:{'0' * 64}",)))


@pytest.mark.parametrize("name", TASKS)
def test_a_frozen_backbone_stays_as_it_is_and_the_other_does_not(ask, name, monkeypatch):
    real, seen = training.Learner.learn, []

    def watch(self, meter):
        before = sha256_of(self._model.student)
        learned = real(self, meter)
        seen.append(sha256_of(self._model.student) == before)
        return learned

    monkeypatch.setattr(training.Learner, "learn", watch)
    result_of(ask(name))
    result_of(ask(name, evaluation="finetune"))
    assert seen == [True, False]


@pytest.mark.parametrize("name", TASKS)
def test_features_that_are_kept_teach_what_features_that_are_made_anew_teach(ask, name):
    still = ("augment={rotation_deg: 0, flip: 0, scale: 0}",)
    kept, anew = (result_of(ask(name, more))["training"]["loss_of_epochs"] for more in ((), still))
    np.testing.assert_allclose(kept, anew, rtol=1e-4)


def test_random_weights_share_frames_and_labels_with_a_run(ask, short_run):
    own = result_of(ask("detect"))
    like = {"what": "random", "like": str(short_run)}
    random = result_of(ask("detect", **like))
    assert random["weights"]["kind"] == "random"
    assert random["weights"]["sha256"] != own["weights"]["sha256"]
    assert (random["test"], random["labels"], random["protocol"]) == (own["test"], own["labels"], own["protocol"])
    few = result_of(ask("detect", evaluation="finetune", share_percent=50, split="frames"))
    assert few["train"]["frames"] == 3
    assert few["split"] == {"share_percent": 50, "rule": "frames", "of_frames": 5}


def test_the_commands(short_run, toy_cache, toy_classes, toy_box_classes, toy_boxes, tmp_path):
    small = [word for each in SMALL for word in ("--set", each)]
    common = [str(short_run), "-c", str(toy_cache), "--protocol", "quick", "--device", "cpu", *small]
    own = {
        "detect": ["--labels", str(toy_boxes), "--classes", toy_box_classes],
        "flow": ["--labels", str(toy_boxes), "--finetune"],
        "occupancy": ["--classes", toy_classes, "--set", "gap_s=0.1", "--set", "horizon=1"],
    }
    for name, words in own.items():
        out = tmp_path / "deep" / f"{name}.json"
        done = CliRunner().invoke(app, [name, *common, *words, "-o", str(out), "--json"])
        assert done.exit_code == 0, done.exception
        assert json.loads(done.stdout) == json.loads(out.read_text())


def test_mistakes_are_said(ask, toy_boxes, toy_cache, tmp_path, unlabelled_cache):
    asked, _ = ask("detect")
    with pytest.raises(LabelError, match="cannot read"):
        make_detection(asked, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="there is no protocol 'qick'"):
        ask("flow", protocol="qick")
    with pytest.raises(UsageError, match=r"there is no key 'bev\.cells'"):
        ask("flow", ("bev.cells=3",))
    with pytest.raises(UsageError, match="say nothing of dataset 'toy'"):
        result_of(ask("detect", classes="nuscenes10"))
    with pytest.raises(UsageError, match=r"has one 0\.5 s before and one after"):
        result_of(ask("occupancy", ("gap_s=0.5",)))
    with pytest.raises(UsageError, match="has labels"):
        result_of(ask("occupancy", caches=(str(unlabelled_cache),)))
    with pytest.raises(HildaError, match="whole number"):
        result_of(ask("flow", ("bev.cell_m=3",)))


def test_boxes_of_another_drive_are_refused(ask, toy_boxes, toy_cache, tmp_path):
    from hilda_schema.boxes import BoxesInfo, read_boxes, write_boxes
    from hilda_schema.keys import Key

    labels = read_boxes(toy_boxes)
    other = tmp_path / "other.parquet"
    write_boxes(
        other, [(Key("toy", "elsewhere", "0"), labels[next(iter(labels))])], BoxesInfo(dataset="toy", written_by="")
    )
    asked, _ = ask("flow")
    with pytest.raises(UsageError, match=r"none of 5 frames, e\.g\. not toy/"):
        head_result(asked, make_flow(asked, other), CPU)


def test_shipped_protocols_and_classes_are_sound():
    from hilda_train.evaluate.detection.classes import box_class_files, load_box_classes
    from hilda_train.evaluate.detection.protocol import DetectionProtocol
    from hilda_train.evaluate.heads.protocol import HeadProtocol, load_head_protocol
    from hilda_train.evaluate.semantic_occupancy.protocol import OccupancyProtocol

    kinds = {"detection": DetectionProtocol, "flow": HeadProtocol, "semantic_occupancy": OccupancyProtocol}
    for package, kind in kinds.items():
        for name in ("quick", "standard"):
            protocol = load_head_protocol(kind, f"hilda_train.evaluate.{package}", name, ())
            assert protocol.bev.grid().cells % 2 == 0
    assert box_class_files() == ("coarse3", "nuscenes10")
    for name in box_class_files():
        assert load_box_classes(name).names


def test_every_category_of_the_synthetic_drive_has_a_class():
    from hilda_cache.drives.synthetic.categories import CATEGORIES
    from hilda_train.evaluate.detection.classes import load_box_classes

    annotated = set(CATEGORIES[1:24])
    for name in ("coarse3", "nuscenes10"):
        assert set(load_box_classes(name).table("nuscenes")) == annotated


def test_the_report_shows_results_of_each_task(ask, short_run, tmp_path):
    from hilda_train.report.results import evaluated

    paths = []
    for name in TASKS:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(result_of(ask(name))))
        paths.append(path)
    sections = evaluated(paths)
    assert len(sections) == 3
    text = "".join(section.body for section in sections)
    assert all(word in text for word in ("mAP", "EPE, three-way", "mIoU, mean over steps"))
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"evaluation": "detect", "scores": 3}))
    with pytest.raises(UsageError, match="holds no result"):
        evaluated([Path(broken)])
