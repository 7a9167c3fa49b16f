"""The config tree: strict, explained in one line a key, compared, hashed and resolved."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_schema.errors import UsageError
from hilda_train.config import (
    Facts,
    FitConfig,
    apply_set,
    differences,
    digest,
    dump_effective,
    from_mapping,
    overlay,
    resolve,
)
from hilda_train.config.mistakes import known_keys
from hilda_train.config.section import FREE, Section
from hilda_train.config.strict_yaml import parse

CONFIG = FitConfig()
FACTS = Facts(teachers={"dino": ("9", "10", "11"), "clip": ("last",)}, steps_per_epoch=100, bfloat16=False)


def message_of(assignments):
    with pytest.raises(UsageError) as error:
        apply_set(CONFIG, assignments)
    return f"{error.value.message} -> {error.value.remedy}" if error.value.remedy else error.value.message


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.maxsteps=4", "there is no key 'train.maxsteps' -> did you mean train.max_steps?"),
        ("max_steps=4", "there is no key 'max_steps' -> did you mean train.max_steps?"),
        ("objectives.occupancy.cell=1", "there is no key 'objectives.occupancy.cell' -> did you mean"),
        ("foo=1", "there is no key 'foo' -> a config has about, student"),
        ("student.depth=15", "student.depth = 15 should be 14, 18, 34 or 50"),
        ("student.arch=resnet", "student.arch = 'resnet' should be one of 'minkunet', 'waffleiron'"),
        ("train.keep=1", "train.keep = 1 should be greater than or equal to 2"),
        ("train.keep=2.5", "train.keep = 2.5 should be a whole number"),
        ("train.deterministic=no", "train.deterministic = 'no' should be true or false"),
        ("train.deterministic=1", "train.deterministic = 1 should be true or false"),
        ("optim.lr='1e-3'", "optim.lr = '1e-3' should be a number"),
        ("optim.lr=.inf", "optim.lr = '.inf' should be a number"),
        ("student.levels=block8", "student.levels = 'block8' should be a list"),
        ("student.voxels.size=[0.1, 0.1]", "student.voxels.size[2] is missing"),
        ("student.channels=[intensity, colour]", "student.channels[1] = 'colour' should be 'intensity', 'xyz'"),
        ("train=4", "train = 4 should be a section of keys"),
        ("train.keep.deeper=4", "train.keep = {'deeper': 4} should be a whole number"),
        ("targets=[{teacher: dino}, {teacher: dino, layer: 1}]", "targets[0].layer is missing"),
        ("schedule.warmup=soon", "schedule.warmup = 'soon' is not a duration: write steps (3500)"),
        ("schedule.warmup=-1", "schedule.warmup = -1 is not a duration"),
        ("schedule={kind: inverse_sqrt}", "schedule.timescale is missing"),
        ("data.intensity.mine={mean: 0, std: 0}", "data.intensity.mine.std = 0 should be greater than 0"),
        ("x", "--set 'x' is not KEY=VALUE"),
        ("=4", "--set '=4' is not KEY=VALUE"),
        ("train.keep=[", "--set train.keep:1:2: expected"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(assignment, words):
    message = message_of([assignment])
    assert words in message
    assert "\n" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("assignments", "keys"),
    [
        (["targets=[{teacher: a, layer: 1}]"], ["targets", "student.levels"]),
        (["train.accumulate=3"], ["data.batch_size = 8", "train.accumulate = 3"]),
        (["objectives.occupancy.kind=diffusion", "data.frustum_only=true"], ["objectives.occupancy", "frustum_only"]),
        (["objectives.occupancy={kind: bce, cell_m: 0.3}"], ["occupancy.cell_m = 0.3", "occupancy.range_m = 51.2"]),
        (["objectives.occupancy={kind: bce, range_m: 50, cell_m: 0.8}"], ["125 cells", "range_m", "multipliers"]),
        (["objectives.occupancy={kind: diffusion, z_min_m: 4}"], ["z_min_m", "z_max_m"]),
        (["optim.lr=1e-6", "schedule.final_lr=1e-5"], ["schedule.final_lr = 1e-05", "optim.lr = 1e-06"]),
        (["objectives.point.weight=0"], ["no objective has a weight", "objectives.point.weight"]),
        (["train.epochs=null"], ["train.epochs", "train.max_steps"]),
        (["student={arch: waffleiron, depth: 12}"], ["student.levels asks for layer 48", "student.depth = 12"]),
    ],
)
def test_a_contradiction_names_both_keys(assignments, keys):
    message = message_of(assignments)
    assert all(key in message for key in keys), message
    assert "\n" not in message


def test_several_mistakes_have_a_line_each():
    lines = message_of(["train.keep=1", "optim.lr=fast", "train.maxsteps=3"]).splitlines()
    assert lines[0] == "--set: 3 keys are wrong"
    assert sorted(line.split()[0] for line in lines[1:]) == ["optim.lr", "there", "train.keep"]
    assert any(line.endswith("did you mean train.max_steps?") for line in lines)


VARIANTS = {
    "student": ["student.arch=minkunet", "student.arch=waffleiron"],
    "optim": ["optim.kind=adamw", "optim.kind=sgd"],
    "schedule": [f"schedule.kind={kind}" for kind in ("constant", "cosine", "onecycle")]
    + ["schedule={kind: inverse_sqrt, timescale: 1}"],
    "objectives": [f"objectives.occupancy.kind={kind}" for kind in ("none", "diffusion", "bce", "also")],
}
KEYS = sorted(set(known_keys(FitConfig)) - {"about", "data.intensity", "data.intensity.mean", "data.intensity.std"})


@pytest.mark.parametrize("key", [key for key in KEYS if not key.startswith("targets.")])
def test_no_key_takes_a_value_of_another_kind(key):
    """Every key of every variant refuses a section of unknown keys, and some variant does so by its name."""
    messages = [
        message_of([variant, f"{key}={{no_such_key: 1}}"])
        for variant in VARIANTS.get(key.partition(".")[0], ["train.seed=0"])
    ]
    assert any(f"{key} = " in message or f"'{key}.no_such_key'" in message for message in messages), messages


def test_a_key_of_another_variant_is_told_apart_from_a_misspelt_one():
    assert message_of(["optim.momentum=0.5"]).endswith(
        "there is no key 'optim.momentum' -> another variant of optim has it"
    )


def test_switching_a_variant_starts_from_its_defaults():
    sgd = apply_set(CONFIG, ["optim.lr=0.3", "optim.kind=sgd"])
    assert sgd.optim.model_dump() == apply_set(CONFIG, ["optim={kind: sgd}"]).optim.model_dump()
    same_kind = apply_set(CONFIG, ["optim.lr=0.3", "optim.kind=adamw", "optim.eps=1e-6"])
    assert (same_kind.optim.lr, same_kind.optim.eps) == (0.3, 1e-6)
    changed = overlay(CONFIG, {"student": {"arch": "waffleiron", "depth": 48}, "data": {"workers": 0}}, "x")
    assert (changed.student.width, changed.data.workers, changed.data.batch_size) == (768, 0, CONFIG.data.batch_size)


def test_assignments_build_on_each_other_and_the_last_wins():
    config = apply_set(
        CONFIG,
        ["train.max_steps=4", "train.max_steps=5", "objectives.occupancy.kind=bce", "objectives.occupancy.base=8"],
    )
    assert config.train.max_steps == 5
    assert config.objectives.occupancy.base == 8
    assert apply_set(CONFIG, []) is CONFIG


def test_a_layer_may_be_written_as_a_number():
    config = apply_set(CONFIG, ["targets=[{teacher: a, layer: 11}, {teacher: a, layer: stage4}]"])
    assert [target.layer for target in config.targets] == ["11", "stage4"]


def test_the_tree_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        CONFIG.train.keep = 5


def test_the_effective_text_is_stable_and_reads_back():
    for config in (CONFIG, apply_set(CONFIG, ["student.arch=waffleiron", "objectives.occupancy.kind=diffusion"])):
        text = dump_effective(config)
        assert from_mapping(parse(text, "x"), "x") == config
        assert dump_effective(from_mapping(parse(text, "x"), "x")) == text
    assert "no_such" not in dump_effective(CONFIG)


def leaves(section, prefix=""):
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, field.json_schema_extra == FREE


NUMBERS = [(key, value, free) for key, value, free in leaves(CONFIG) if isinstance(value, bool | int | float)]


@pytest.mark.parametrize(("key", "value", "free"), NUMBERS)
def test_the_digest_sees_every_number_that_matters_and_no_other(key, value, free):
    if isinstance(value, bool):
        other = "false" if value else "true"
    elif key == "student.depth":
        other = "18"
    elif key == "student.stem_kernel_size":
        other = "5"
    elif key == "data.batch_size":
        other = "4"
    elif isinstance(value, int):
        other = str(value + 1)
    else:
        other = repr(value / 2 if value else 0.001)
    changed = apply_set(CONFIG, [f"{key}={other}"] + (["data.batch_size=2"] if key == "train.accumulate" else []))
    expected_same = free
    assert (digest(changed) == digest(CONFIG)) == expected_same
    assert bool(differences(CONFIG, changed)) != expected_same
    if not free:
        assert any(line.startswith(f"{key}: ") for line in differences(CONFIG, changed))


CHANGES = (
    *("train.seed=1", "train.seed=2", "optim.kind=sgd", "optim.kind=adamw", "data.workers=7", "about=text"),
    *("train.ema=0.9", "objectives.occupancy.kind=also", "student.width=0.5", "train.log_every=1"),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(CHANGES), max_size=5))
def test_no_difference_means_the_same_digest(assignments):
    changed = apply_set(CONFIG, assignments)
    assert (differences(CONFIG, changed) == []) == (digest(changed) == digest(CONFIG))
    assert len(differences(CONFIG, changed)) == len(differences(changed, CONFIG))


def test_differences_are_readable():
    changed = apply_set(CONFIG, ["optim.lr=1e-3", "student.levels=[block8]"])
    assert differences(CONFIG, changed) == [
        'student.levels: ["block7", "block8"] -> ["block8"]',
        "optim.lr: 0.002 -> 0.001",
    ]


def test_auto_is_settled_once_with_reasons():
    asked = apply_set(CONFIG, ["train.precision=auto", "schedule.warmup=2%", "objectives.global_context.weight=0.1"])
    resolved = resolve(asked, FACTS)
    config = resolved.config
    assert [(each.teacher, each.layer) for each in config.targets] == [("dino", "10"), ("dino", "11")]
    assert config.objectives.global_context.teacher == "dino"
    assert (config.train.max_steps, config.schedule.warmup, config.train.precision) == (2500, 50, "float32")
    assert len(resolved.reasons) == 5
    assert "auto" not in dump_effective(config).replace("about: ''", "")
    assert resolve(config, FACTS).config == config
    assert resolve(config, FACTS).reasons == ()


def test_slow_bfloat16_is_allowed_with_a_warning():
    asked = apply_set(CONFIG, ["train.precision=bfloat16", "train.max_steps=7"])
    slow, fast = resolve(asked, FACTS), resolve(asked, dataclasses.replace(FACTS, bfloat16=True))
    assert slow.config.train.precision == fast.config.train.precision == "bfloat16"
    (warning,) = set(slow.reasons) - set(fast.reasons)
    assert "many times slower" in warning


@pytest.mark.parametrize(
    ("assignments", "steps", "warmup"),
    [
        (["train.max_steps=7"], 7, 0),
        (["train.epochs=null", "train.max_steps=7", "schedule.warmup=3"], 7, 3),
        (["train.epochs=0.5", "schedule.warmup=0.1 epochs"], 50, 10),
        (["train.epochs=2", "train.max_steps=1000", "schedule.warmup=10%"], 200, 20),
        (["train.epochs=0.001"], 1, 0),
    ],
)
def test_durations(assignments, steps, warmup):
    config = resolve(apply_set(CONFIG, assignments), FACTS).config
    assert (config.train.max_steps, config.schedule.warmup) == (steps, warmup)


@pytest.mark.parametrize(
    ("assignments", "facts", "words"),
    [
        (["schedule.warmup=9", "train.max_steps=9"], FACTS, ["schedule.warmup", "9 steps", "train.max_steps"]),
        (["targets=[{teacher: dino, layer: 8}, {teacher: dino, layer: 9}]"], FACTS, ["'8'", "stored are 9, 10, 11"]),
        (["targets=[{teacher: sam, layer: 8}, {teacher: dino, layer: 9}]"], FACTS, ["'sam'", "dino, clip"]),
        (
            ["objectives.global_context={weight: 1, teacher: sam}"],
            FACTS,
            ["objectives.global_context.teacher", "'sam'"],
        ),
        ([], Facts({"clip": ("last",)}, 10, False), ["targets = auto", "2 levels", "clip has 1"]),
        ([], Facts({}, 10, False), ["no teacher"]),
        ([], Facts({"dino": ("1", "2")}, 0, False), ["fewer clips", "data.batch_size"]),
        (
            ["schedule={kind: inverse_sqrt, timescale: 5, warmup: 50%, cooldown: 50%}"],
            FACTS,
            ["schedule.warmup and schedule.cooldown"],
        ),
    ],
)
def test_what_does_not_fit_the_caches_is_refused(assignments, facts, words):
    with pytest.raises(UsageError) as error:
        resolve(apply_set(CONFIG, assignments), facts)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_published_intensity_is_written_out_unless_the_recipe_has_its_own():
    facts = Facts(FACTS.teachers, 100, True, intensity={"nuscenes": (18.7, 22.0), "kitti_raw": (0.28, 0.14)})
    config = resolve(apply_set(CONFIG, ["data.intensity.kitti_raw={mean: 1, std: 2}"]), facts).config
    assert {name: (each.mean, each.std) for name, each in config.data.intensity.items()} == {
        "kitti_raw": (1.0, 2.0),
        "nuscenes": (18.7, 22.0),
    }
    without = resolve(apply_set(CONFIG, ["student.channels=[xyz]"]), facts).config
    assert without.data.intensity == {}


def test_reading_a_config_loads_no_torch():
    code = "import sys, hilda_train.recipes as r; r.load_recipe('hilda'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
