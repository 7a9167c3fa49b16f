"""Every shipped recipe loads, can be built, and differs from its neighbour in the ablated key alone."""

from pathlib import Path

import pytest
import torch

from hilda_schema.errors import UsageError
from hilda_train import recipes
from hilda_train.config import Facts, differences, digest, resolve
from hilda_train.recipes import load_recipe, recipe_names
from hilda_train.students import build_student

REPO = Path(__file__).resolve().parents[2]
# ScaLR's merged set: 55,100 sweeps in batches of 8.
FACTS = Facts(teachers={"dino": ("11", "12")}, steps_per_epoch=55_100 // 8, bfloat16=True)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_resolves_and_its_student_can_be_built(name):
    config = resolve(load_recipe(name), FACTS).config
    with torch.device("meta"):
        student = build_student(config.student.options())
    assert len(student.channels) == len(config.student.levels) == len(config.targets)
    assert config.about


def test_recipes_are_different_and_small():
    configs = {name: load_recipe(name) for name in recipe_names()}
    assert len({digest(config) for config in configs.values()}) == len(configs)
    assert len({config.about for config in configs.values()}) == len(configs)
    for name in configs:
        lines = (Path(recipes.__file__).parent / f"{name}.yaml").read_text().splitlines()
        assert lines[0].startswith("# "), f"{name} does not say what it stands for"
        assert len([line for line in lines if line and not line.startswith("#")]) <= 25, name


def changed_keys(before, after):
    return {line.partition(":")[0] for line in differences(load_recipe(before), load_recipe(after))}


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [
        ("base", "multi_layer", {"student.levels"}),
        ("multi_layer", "hilda_no_diffusion", {"objectives.global_context.weight"}),
        ("hilda_no_global", "hilda", {"objectives.global_context.weight"}),
        ("base_diffusion", "hilda_no_global", {"student.levels"}),
        ("hilda", "hilda_l2", {"objectives.point.distance"}),
        ("hilda", "hilda_kl", {"objectives.point.distance"}),
        ("base", "relational", {"objectives.relational.cross_weight", "objectives.relational.intra_weight"}),
    ],
)
def test_an_ablation_changes_what_its_row_says_and_nothing_else(before, after, keys):
    assert changed_keys(before, after) == keys


@pytest.mark.parametrize(
    ("before", "after"),
    [("base", "base_diffusion"), ("hilda_no_diffusion", "hilda"), ("hilda", "hilda_bce"), ("hilda", "hilda_also")],
)
def test_an_occupancy_arm_changes_the_occupancy_alone(before, after):
    keys = changed_keys(before, after)
    assert keys
    assert all(key.startswith("objectives.occupancy.") for key in keys)


def test_scalr_is_scalrs():
    """The numbers of the authors' configs/pretrain/WI_768_pretrain.yaml."""
    config = resolve(load_recipe("scalr"), FACTS).config
    student, data = config.student, config.data
    assert (student.arch, student.depth, student.width, student.neighbours, student.thin_m) == (
        "waffleiron",
        48,
        768,
        16,
        0.1,
    )
    assert student.range_m == ((-64, -64, -8), (64, 64, 8))
    assert (student.channels, student.cell_m) == (("intensity", "xyz", "range"), 0.5)
    assert (data.cameras, data.frustum_only, data.max_points, data.batch_size) == (1, True, 20_000, 8)
    assert (config.optim.lr, config.optim.weight_decay) == (2e-3, 0.03)
    assert (config.schedule.warmup, config.schedule.final_lr, config.train.max_steps) == (3500, 1e-5, 25 * 6887)
    assert (config.objectives.point.distance, config.objectives.point.head.layers) == ("norm", 1)


def test_scalr_plus_is_in_epochs():
    schedule = resolve(load_recipe("scalr_plus"), FACTS).config.schedule
    assert (schedule.warmup, schedule.timescale, schedule.cooldown) == (6887, round(0.45 * 6887), 2 * 6887)


def test_the_table_lists_every_recipe():
    table = (REPO / "recipes" / "README.md").read_text()
    assert [name for name in recipe_names() if f"`{name}`" not in table] == []


def test_a_users_recipe_extends_by_name_and_by_path(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "mine.yaml").write_text("extends: hilda\nstudent: {depth: 18}\n")
    (tmp_path / "deep" / "more.yaml").write_text("extends: ../mine.yaml\ntrain: {max_steps: 3}\n")
    config = load_recipe(tmp_path / "deep" / "more.yaml")
    assert (config.student.depth, config.train.max_steps) == (18, 3)
    assert config.objectives == load_recipe("hilda").objectives
    (tmp_path / "alone.yaml").write_text("train: {max_steps: 2}\n")
    assert load_recipe(tmp_path / "alone.yaml").train.max_steps == 2
    (tmp_path / "empty.yaml").write_text("")
    assert load_recipe(str(tmp_path / "empty.yaml")).student.depth == 34


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: mine.yaml", ["in a circle", "mine.yaml"]),
        ("extends: hlida", ["no recipe 'hlida'", "did you mean hilda?"]),
        ("extends: [hilda]", ["extends = ['hilda'] is not a recipe's name"]),
        ("extends: ./none.yaml", ["none.yaml cannot be read: No such file"]),
        ("extends: hilda\ntrian: {epochs: 3}", ["mine.yaml: there is no key 'trian'", "did you mean train?"]),
        ("[1, 2]", ["mine.yaml is not a mapping"]),
        ("extends: hilda\ntrain: [1]", ["train = [1] should be a section of keys"]),
        ("a: 1\n" * 100_000, ["a config has at most"]),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        load_recipe(tmp_path / "mine.yaml")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UsageError, match="there is no recipe 'zzz'") as error:
        load_recipe("zzz")
    assert all(name in error.value.remedy for name in recipe_names())
