"""From a run's folder to the files of an export: the right weights, a card that says what they are, no accident."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from typer.main import get_command

from hilda_schema.errors import HildaError, TrainError, UsageError
from hilda_schema.manifest import sha256_hex
from hilda_train.checkpoint import save
from hilda_train.cli import app
from hilda_train.commands import export
from hilda_train.config import Facts, apply_set, digest, resolve
from hilda_train.export import TARGETS, export_backbone, load_backbone
from hilda_train.export.write import MODULE
from hilda_train.learner import Learner
from hilda_train.optim import MovingAverage, build_optimizer
from hilda_train.recipes import load_recipe
from hilda_train.run import CHECKPOINTS, start_run
from hilda_train.students import build_student
from hilda_train.train_state import capture, capture_random

STUDENTS = {
    "minkunet": "student={arch: minkunet, depth: 14, width: 0.125, levels: [block8]}",
    "waffleiron": "student={arch: waffleiron, depth: 2, width: 8, levels: [2]}",
}


def filled(module, value):
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(value)


def make_run(folder, student="minkunet", steps=(3,), ema=None):
    """A run's folder with a checkpoint per step, whose weights are all the step's number; the average lags behind."""
    head = "objectives.point.head={layers: 1}"
    changes = [STUDENTS[student], head, "data.intensity={nuscenes: {mean: 18.0, std: 22.0}}", "train.max_steps=9"]
    recipe = apply_set(load_recipe("base"), [*changes, *([f"train.ema={ema}"] if ema else [])])
    config = resolve(recipe, Facts({"vit": ("4",)}, 10, bfloat16=False)).config
    start_run(folder, config, ())
    learner = Learner(config, (8,), 0)
    optimizer = build_optimizer(learner, config.optim)
    filled(learner, 0.0)
    average = MovingAverage(learner, ema) if ema else None
    for step in steps:
        filled(learner, step)
        if average is not None:
            average.update(learner)
        state = {"config": digest(config), "world": 1}
        snapshot = capture(step, learner, optimizer, average, [capture_random()], state)
        save(folder / CHECKPOINTS, snapshot, keep=5)
    return config


def only_value(state):
    (value,) = {float(x) for tensor in state.values() for x in tensor.flatten()[:3]}
    return value


def test_a_backbone_is_the_student_of_the_newest_checkpoint(tmp_path):
    config = make_run(tmp_path / "run", steps=(3, 5))
    backbone = load_backbone(tmp_path / "run")
    assert backbone.state.keys() == build_student(config.student.options()).state_dict().keys()
    assert only_value(backbone.state) == 5
    assert backbone.student == config.student
    assert {name: backbone.facts[name] for name in ("step", "weights", "teacher_layers", "levels", "intensity")} == {
        "step": 5,
        "weights": "as trained",
        "teacher_layers": ["vit/4"],
        "levels": ["block8"],
        "intensity": {"nuscenes": {"mean": 18.0, "std": 22.0}},
    }
    assert backbone.facts["config_digest"] == digest(config)
    assert only_value(load_backbone(tmp_path / "run", step=3).state) == 3


def test_the_moving_average_is_what_is_exported_where_there_is_one(tmp_path):
    make_run(tmp_path / "run", steps=(4, 8), ema=0.75)
    backbone = load_backbone(tmp_path / "run")
    assert backbone.facts["weights"] == "moving average"
    # 0 -> 4: 0.25 * 4 = 1; 1 -> 8: 1 + 0.25 * 7 = 2.75. Statistics of normalisations are copied.
    values = {name: float(tensor.flatten()[0]) for name, tensor in backbone.state.items()}
    statistics = {name for name in values if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert {values[name] for name in statistics} == {8.0}
    assert {value for name, value in values.items() if name not in statistics} == {2.75}
    export_backbone(backbone, "minkowski", tmp_path / "out")
    content = torch.load(tmp_path / "out" / "backbone.pt", weights_only=True)
    assert float(content["model_points"]["conv0p1s1.kernel"][0, 0, 0]) == 2.75
    assert json.loads((tmp_path / "out" / "backbone.json").read_text())["facts"]["weights"] == "moving average"


def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path):
    make_run(tmp_path / "run", steps=(3, 5))
    file = tmp_path / "run" / CHECKPOINTS / "step-00000005" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    said = []
    assert only_value(load_backbone(tmp_path / "run", warn=said.append).state) == 3
    assert "checkpoint of step 5 is passed over" in said[0]
    with pytest.raises(TrainError, match="damaged"):
        load_backbone(tmp_path / "run", step=5)


def test_what_is_no_run_or_has_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(TrainError, match="holds no run"):
        load_backbone(tmp_path)
    make_run(tmp_path / "run", steps=())
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        load_backbone(tmp_path / "run")
    make_run(tmp_path / "other", steps=(3,))
    with pytest.raises(UsageError, match="no checkpoint of step 4"):
        load_backbone(tmp_path / "other", step=4)


def test_another_student_than_the_configs_is_refused(tmp_path):
    make_run(tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("depth: 14", "depth: 18"))
    with pytest.raises(TrainError, match=r"lacks student\.block"):
        load_backbone(tmp_path / "run")


@pytest.fixture(scope="module")
def backbones(minkunet, waffleiron):
    """For each target a student that it takes."""
    narrow, wide, waffle = minkunet(14)[0], minkunet(14, width=1.0)[0], waffleiron()[0]
    return {name: wide if name == "pointcept" else waffle if name == "scalr" else narrow for name in TARGETS}


@pytest.mark.parametrize("target", list(TARGETS))
def test_an_export_is_its_weights_and_a_card(backbones, tmp_path, target):
    backbone, chosen = backbones[target], TARGETS[target]
    out = tmp_path / "deep" / "out"
    written = export_backbone(backbone, target, out)
    assert sorted(written) == sorted(out.iterdir())
    names = {f"backbone{chosen.suffix}", "backbone.json"} | ({MODULE} if target == "openpcdet" else set())
    assert {path.name for path in written} == names
    card = json.loads((out / "backbone.json").read_text())
    weights = out / card["weights"]
    assert card["weights_sha256"] == sha256_hex(weights.read_bytes())
    assert (card["target"], card["kernel_layout"], card["use"]) == (target, chosen.layout, chosen.use)
    assert card["student"] == backbone.student.model_dump(mode="json")
    assert card["facts"] == backbone.facts
    assert card["input"]["channels"] == ["intensity", "xyz", "range"]
    assert card["input"]["intensity"] == backbone.facts["intensity"]
    assert ("voxels" in card["input"]) == (target != "scalr")
    if chosen.model_config is not None:
        assert card["model_config"] == chosen.model_config(backbone)

    expected = chosen.convert(backbone)
    if target == "safetensors":
        with safe_open(weights, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            assert file.metadata()["kernel_layout"] == chosen.layout
    else:
        found = torch.load(weights, weights_only=True)[chosen.root]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert found[name].is_contiguous()


def test_a_student_can_be_built_from_the_safetensors_export_alone(tmp_path, minkunet, voxels):
    """Card and weights are enough: the way back into this library."""
    from safetensors.torch import load_file

    from hilda_train.config.student import MinkUNetConfig
    from hilda_train.students.sparse import Geometry, SparseTensor

    backbone, run = minkunet(14)
    export_backbone(backbone, "safetensors", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "backbone.json").read_text())
    config = MinkUNetConfig.model_validate_json(json.dumps(card["student"]))
    student = build_student(config.options())
    student.load_state_dict(load_file(tmp_path / "out" / card["weights"]))
    coords, feats, _ = voxels()
    with torch.no_grad():
        found = student.eval().double().decode(SparseTensor(feats.double(), Geometry(coords, 2)))["block8"]
    expected = run(coords, feats)["block8"]
    assert list(expected) == [tuple(row) for row in found.coords.tolist()]
    assert np.array_equal(np.stack(list(expected.values())), found.feats.numpy())


@pytest.mark.parametrize("target", ["safetensors", "torchsparse"])
def test_the_same_backbone_gives_the_same_bytes(backbones, tmp_path, target):
    for k in range(6):
        export_backbone(backbones[target], target, tmp_path / str(k))
    for path in (tmp_path / "0").iterdir():
        assert len({(tmp_path / str(k) / path.name).read_bytes() for k in range(6)}) == 1


def test_nothing_is_overwritten(backbones, tmp_path):
    """Not by the same target, and not by another one that writes a file of the same name."""
    out = tmp_path / "out"
    export_backbone(backbones["minkowski"], "minkowski", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for target in ("minkowski", "torchsparse"):
        with pytest.raises(UsageError, match="is there already") as error:
            export_backbone(backbones[target], target, out)
        assert "another folder" in error.value.remedy
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        export_backbone(backbones["minkowski"], "minkowski", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_refused_export_leaves_nothing_behind(backbones, tmp_path):
    with pytest.raises(UsageError, match="takes a WaffleIron"):
        export_backbone(backbones["minkowski"], "scalr", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_target_is_one_line_with_the_list(backbones, tmp_path):
    with pytest.raises(UsageError, match="there is no export target 'onnx'") as error:
        export_backbone(backbones["minkowski"], "onnx", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert error.value.remedy == f"use one of {', '.join(TARGETS)}"
    assert error.value.exit_code == 2


def test_the_command_line_names_every_target():
    (to,) = (each for each in get_command(app).commands["export"].params if each.name == "to")
    assert [name for name in TARGETS if name not in to.help.replace(" or ", ", ").rstrip(".").split(", ")] == []


def test_the_command_writes_what_the_function_writes(tmp_path):
    make_run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "torchsparse")
    expected = export_backbone(load_backbone(tmp_path / "run"), "torchsparse", tmp_path / "again")
    for path in expected:
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(HildaError, match="there is no export target"):
        export(tmp_path / "run", tmp_path / "out2", "onnx")


def test_slidr_is_told_the_voxels_where_it_has_words_for_them(minkunet):
    def told(**voxels):
        backbone, _ = minkunet(14)
        config = backbone.student.model_copy(update={"voxels": SimpleNamespace(**voxels)})
        return TARGETS["minkowski"].extra(replace(backbone, student=config))

    cubes = told(shape="cartesian", size=(0.1, 0.1, 0.1))
    assert cubes == {"config": {"voxel_size": 0.1, "cylindrical_coordinates": False}}
    cylinder = told(shape="cylindrical", size=(0.1, 1.0, 0.1))
    assert cylinder == {"config": {"voxel_size": 0.1, "cylindrical_coordinates": True}}
    for other in ((0.1, 0.1, 0.2), (0.1, 0.2, 0.1)):
        assert told(shape="cartesian", size=other) == {}
    assert told(shape="cylindrical", size=(0.1, 2.0, 0.1)) == {}
