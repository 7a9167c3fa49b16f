"""From recipe and caches to a run: which scenes, which targets and widths, what is refused before it starts."""

from __future__ import annotations

import pytest
import torch

from hilda_cache.reshape.reencode import reencode
from hilda_schema import open_cache
from hilda_schema.errors import HildaError, TrainError, UsageError
from hilda_schema.testing import tiny_cache, tiny_parts, tiny_recipe
from hilda_schema.writer import finish_store, start_store, write_part
from hilda_train.config import FitConfig, apply_set
from hilda_train.data.tokens import TeacherLayer
from hilda_train.data.voxelise import VoxelGrid
from hilda_train.objectives.bev import BevGrid
from hilda_train.prepare import build_learner, is_trained_on, prepare, sample_options, scan_options, select_clips
from hilda_train.recipes import load_recipe

CPU = torch.device("cpu")
SMALL = (
    "student={arch: minkunet, depth: 14, width: 0.125, levels: [block7, block8]}",
    "objectives.point.head={layers: 1}",
    "objectives.global_context.head={layers: 1}",
    "data={batch_size: 2, gap_s: 0.1}",
    "schedule={kind: constant}",
    "train={max_steps: 2}",
)
BEV = (
    "objectives.occupancy={kind: diffusion, range_m: 16.0, cell_m: 2.0, history_channels: 4, base: 8, "
    "multipliers: [1, 2], blocks: 1, steps: 10}"
)


TOY = "data.intensity.toy={mean: 0.5, std: 0.3}"


def small(*assignments):
    return apply_set(load_recipe("multi_layer"), [*SMALL, TOY, *assignments])


@pytest.fixture
def cache(tmp_path):
    """Write a cache: its dataset, options, teachers (name -> changes of the toy teacher "vit", or None) and scenes."""

    def make(name, dataset="toy", options=None, teachers=None, scenes=2, frames=3):
        recipe = tiny_recipe()
        vit, cnn = recipe.teachers
        chosen = (vit, cnn)
        if teachers is not None:
            chosen = tuple((cnn if key == "cnn" else vit).model_copy(update=new) for key, new in teachers.items())
        info = recipe.dataset.model_copy(update={"name": dataset, "options": options or {}})
        recipe = recipe.model_copy(update={"dataset": info, "teachers": chosen})
        parts = tiny_parts(recipe, scenes=scenes, frames=frames, points=20)
        start_store(tmp_path / name, recipe, planned_parts=len(parts))
        finish_store(tmp_path / name, recipe, [write_part(tmp_path / name, recipe, part) for part in parts])
        return str(tmp_path / name)

    return make


def refused(config, urls, kind=HildaError):
    with pytest.raises(kind) as error:
        prepare(config, urls, CPU)
    assert "\n" not in str(error.value)
    return str(error.value)


def scenes_of(prepared):
    return [prepared.caches[clip.cache].frames["key"][clip.current].as_py() for clip in prepared.clips]


def test_scenes_are_chosen_by_shell_patterns_and_held_out_ones_left_out(cache):
    url = cache("a", scenes=3)
    everything = scenes_of(prepare(small(), [url], CPU))
    assert [key.split("/")[1] for key in everything] == [f"scene-000{k}" for k in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    some = prepare(small('data.scenes=["scene-000[12]"]', 'data.held_out=["*2"]'), [url], CPU)
    assert {key.split("/")[1] for key in scenes_of(some)} == {"scene-0001"}
    for clip in some.clips:  # neighbours come from the same scene
        for row in (clip.previous, clip.next):
            assert row is None or "scene-0001" in some.caches[0].frames["key"][row].as_py()
    assert some.dataset.clips == some.clips
    assert "data.scenes = ['*'], data.held_out = ['sc*']" in refused(small('data.held_out=["sc*"]'), [url], UsageError)
    for key in ("scenes", "held_out"):
        assert "'nope*'" in refused(small(f'data.{key}=["nope*"]'), [url], UsageError)


def test_patterns_know_upper_and_lower_case():
    config = FitConfig.model_validate({"data": {"scenes": ("Day*", "night-?"), "held_out": ("*-9",)}})
    trained = {scene: is_trained_on(config, scene) for scene in ("Day1", "day1", "night-1", "night-10", "night-9")}
    assert trained == {"Day1": True, "day1": False, "night-1": True, "night-10": False, "night-9": False}


def test_a_mix_is_the_clips_of_one_cache_after_the_other(cache):
    urls = [cache("a"), cache("b", dataset="kitti_raw", scenes=1, frames=4)]
    prepared = prepare(small(), urls, CPU)
    assert [clip.cache for clip in prepared.clips] == [0] * 6 + [1] * 4
    assert [clip.current for clip in prepared.clips] == [*range(6), *range(4)]
    assert {name: (each.mean, each.std) for name, each in prepared.config.data.intensity.items()} == {
        "toy": (0.5, 0.3),
        "kitti_raw": (0.28613698, 0.14090556),
    }
    assert dict(scan_options(prepared.config).intensity)["kitti_raw"] == (0.28613698, 0.14090556)


def test_targets_and_widths_come_from_the_caches_that_have_them(cache):
    """The first lacks "cnn"; the second has both, and other grids do not matter."""
    urls = [cache("a", teachers={"vit": {}}), cache("b")]
    prepared = prepare(small("targets=[{teacher: vit, layer: 4}, {teacher: cnn, layer: stage2}]"), urls, CPU)
    assert prepared.widths == (8, 6)
    assert prepared.tokens.layers == (TeacherLayer("vit", "4"), TeacherLayer("cnn", "stage2"))
    assert prepared.tokens.global_teacher is None
    learner = build_learner(prepared)
    assert [head[-1].out_features for head in learner.point.heads] == [8, 6]


def test_auto_takes_the_last_layers_of_the_first_teacher(cache):
    prepared = prepare(small("objectives.global_context.weight=0.1"), [cache("a")], CPU)
    assert prepared.tokens.layers == (TeacherLayer("vit", "2"), TeacherLayer("vit", "4"))
    assert (prepared.tokens.global_teacher, prepared.global_width) == ("vit", 8)
    assert any("targets = vit/2, vit/4" in reason for reason in prepared.reasons)


def test_a_run_without_pairs_reads_no_layer(cache):
    prepared = prepare(small("objectives.point.weight=0", "objectives.global_context.weight=1"), [cache("a")], CPU)
    assert prepared.tokens.layers == ()
    assert prepared.tokens.global_teacher == "vit"


OTHER = {"weights_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"vit": OTHER}, "teacher 'vit' is another model in"),
        ({"vit": {"norm": "pre"}}, "teacher 'vit' was stored pre-norm in"),
    ],
)
@pytest.mark.parametrize("uses", ["objectives.point.weight=1", "objectives.global_context.weight=1"])
def test_one_name_for_two_models_is_refused(cache, second, words, uses):
    urls = [cache("a"), cache("b", teachers=second)]
    message = refused(small(uses), urls, TrainError)
    assert words in message
    assert urls[0] in message
    assert urls[1] in message
    assert "name the teachers apart" in message


def test_layers_of_several_widths_are_refused(cache):
    layers = tiny_recipe().teachers[0].layers
    wider = tuple(layer.model_copy(update={"channels": 10}) for layer in layers)
    message = refused(small(), [cache("a"), cache("b", teachers={"vit": {"layers": wider}})], TrainError)
    assert "layer 2 of vit" in message
    assert "several widths: {8, 10}" in message


def test_layers_that_lost_channels_are_taken_as_they_are_and_not_mixed(tmp_path):
    """Equal widths do not make equal channels: each store's axes are its own."""
    reduced = []
    for name in ("a", "b"):
        whole = str(tiny_cache(tmp_path / name, points=20, seed=ord(name)))
        reencode(whole, tmp_path / f"{name}-6", dims={"vit": 6})
        reduced.append(str(tmp_path / f"{name}-6"))
    config = small()
    assert set(prepare(config, reduced[:1], CPU).widths) == {6}
    assert "lost channels in another way in each cache" in refused(config, reduced, TrainError)
    reencode(whole, tmp_path / "b-as-a", like=reduced[0])
    assert set(prepare(config, [reduced[0], str(tmp_path / "b-as-a")], CPU).widths) == {6}


def test_a_teacher_without_a_global_token_is_refused(cache):
    config = small("objectives.global_context={weight: 1.0, teacher: cnn, head: {layers: 1}}")
    assert "teacher 'cnn' has no global token" in refused(config, [cache("a")], UsageError)


def test_a_sensor_without_statistics_is_refused_before_a_sweep_is_read(cache):
    config = apply_set(load_recipe("multi_layer"), list(SMALL))
    message = refused(config, [cache("a", dataset="nuscenes"), cache("b")], UsageError)
    assert "no intensity statistics for toy" in message
    assert "data.intensity.toy={mean: MEAN, std: STD}" in message
    assert "no intensity statistics for pandaset_both" in refused(
        config, [cache("c", dataset="pandaset", options={"lidar": "both"})], UsageError
    )
    gt = prepare(config, [cache("d", dataset="pandaset", options={"lidar": "pandargt"})], CPU)
    assert gt.config.data.intensity["pandaset_pandargt"].mean == 23.06113565
    blind = prepare(apply_set(config, ["student.channels=[xyz]"]), [cache("e")], CPU)
    assert not blind.config.data.intensity


def test_occupancy_needs_neighbours_in_time(cache):
    url = cache("a")
    assert prepare(small(BEV), [url], CPU).dataset.options.history
    message = refused(small(BEV, "data.gap_s=0.5"), [url], TrainError)
    assert "the frames are 0.1 s apart" in message
    assert "data.gap_s=0.1" in message
    assert not prepare(small("data.gap_s=0.5"), [url], CPU).dataset.options.history


def test_no_cache_and_too_few_clips_are_refused(cache):
    assert "no cache is given" in refused(small(), [], UsageError)
    assert "fewer clips than data.batch_size = 8" in refused(small("data.batch_size=8"), [cache("a")], UsageError)


def test_a_recipes_words_reach_the_data_path():
    config = small(
        BEV,
        "student.voxels={shape: cylindrical, size: [0.2, 2.0, 0.3], range_m: [[-9, -9, -2], [9, 9, 2]], "
        "reduction: random}",
        "data={cameras: 2, visible_only: true, max_points: 77, intensity: {toy: {mean: 1.0, std: 2.0}}, "
        "augment: {rotation_deg: 10.0, flip: 0.0, scale: 0.2, dropout: 0.4}}",
        "train.seed=9",
    )
    options = sample_options(config)
    assert options.scan == scan_options(config)
    assert options.scan.grid == VoxelGrid("cylindrical", (0.2, 2.0, 0.3), ((-9, -9, -2), (9, 9, 2)))
    assert (options.scan.reduction, options.scan.thin, options.scan.neighbours) == ("random", False, 0)
    assert (options.scan.cameras, options.scan.visible_only, options.scan.max_points) == (2, True, 77)
    assert not options.scan.frustum_only
    assert options.scan.intensity == {"toy": (1.0, 2.0)}
    augment = options.augment
    assert (augment.rotation_deg, augment.flip, augment.scale, augment.dropout) == (10.0, 0.0, 0.2, 0.4)
    assert options.bev == BevGrid(16.0, 2.0, -2.0, 3.0)
    assert (options.history, options.seed) == (True, 9)


def test_scalr_thins_points_and_finds_their_neighbours():
    options = scan_options(load_recipe("scalr"))
    assert options.grid == VoxelGrid("cartesian", (0.1, 0.1, 0.1), ((-64, -64, -8), (64, 64, 8)))
    assert (options.thin, options.reduction, options.neighbours) == (True, "random", 16)
    assert (options.cameras, options.frustum_only, options.max_points) == (1, True, 20_000)
    whole = scan_options(apply_set(load_recipe("scalr"), ["student.thin_m=null"]))
    assert not whole.thin
    assert whole.grid.range_m == ((-64, -64, -8), (64, 64, 8))


def test_the_learners_weights_follow_from_the_seed(cache):
    url = cache("a")

    def weights(seed):
        torch.manual_seed(123)  # whatever the state of the process
        state = build_learner(prepare(small(BEV, f"train.seed={seed}"), [url], CPU)).state_dict()
        return torch.cat([value.float().flatten() for value in state.values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("key", ["data.scenes", "data.held_out"])
def test_a_scene_that_is_not_there_is_refused_since_it_would_be_trained_on(tmp_path, key):
    opened = [open_cache(tiny_cache(tmp_path / "cache", points=20))]
    with pytest.raises(UsageError, match="no scene is called 'scene-000l'") as refused:
        select_clips(small(f"{key}=[scene-000l]"), opened)
    assert "scene-0001" in str(refused.value)
    scenes = opened[0].frames["scene"].to_pylist()
    clips = select_clips(small("data.held_out=[scene-0001]"), opened)
    assert {scenes[clip.current] for clip in clips} == {"scene-0000"}
