"""Frames chosen by scene and time, and few of them by two rules."""

from __future__ import annotations

import pytest

from hilda_schema import open_cache
from hilda_schema.errors import UsageError
from hilda_schema.testing import tiny_cache
from hilda_train.evaluate.splits import Wanted, few, frames_of, labelled, parse_frames, require_apart, scene_of


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Two caches of twelve scenes with two frames."""
    folder = tmp_path_factory.mktemp("splits")
    return [open_cache(tiny_cache(folder / name, scenes=12, frames=2, points=3)) for name in ("a", "b")]


def wanted(*scenes, but_not=(), frames=None):
    return Wanted(scenes, but_not, frames, "--train-scenes")


def words(caches, places):
    return [(cache, *caches[cache].frames["key"][row].as_py().split("/")[1:3]) for cache, row in places]


def test_frames_come_by_cache_scene_and_time(caches):
    found = words(caches, frames_of(caches, wanted("*")))
    assert len(found) == 2 * 12 * 2
    assert found == sorted(found)


def test_scenes_are_chosen_by_pattern_and_frames_by_their_place_in_the_scene(caches):
    found = words(caches[:1], frames_of(caches[:1], wanted("scene-000*", but_not=("*2", "*5"), frames=(1, 2))))
    chosen = [f"scene-{k:04d}" for k in range(10) if k not in {2, 5}]
    assert found == [(0, scene, f"{k:06d}") for scene in chosen for k in (1,)]


@pytest.mark.parametrize(("share", "every"), [(1, 100), (5, 20), (10, 10), (25, 4), (50, 2), (100, 1)])
def test_few_scenes_are_every_kth_of_both_caches_together(caches, share, every):
    places = frames_of(caches, wanted("*"))
    found = few(caches, places, share, "scenes")
    scenes = [(cache, f"scene-{k:04d}") for cache in (0, 1) for k in range(12)]
    assert sorted({scene_of(caches, place) for place in found}) == scenes[::every]
    assert len(found) == 2 * len(scenes[::every])  # whole scenes


@pytest.mark.parametrize(("share", "every"), [(1, 100), (5, 20), (10, 10), (25, 4), (100, 1)])
def test_few_frames_are_spread_over_all(caches, share, every):
    places = frames_of(caches, wanted("*"))
    found = few(caches, places, share, "frames")
    assert [places.index(place) for place in found] == list(range(0, 48, every))


@pytest.mark.parametrize("share", [0, -1, 101, 30, 66])
def test_a_share_that_is_no_whole_step_is_refused(caches, share):
    with pytest.raises(UsageError, match="is not one k-th"):
        few(caches, [(0, 0)], share, "frames")


def test_another_rule_is_refused(caches):
    with pytest.raises(UsageError, match="--split random is not known"):
        few(caches, [(0, 0)], 1, "random")


def test_a_pattern_without_a_scene_is_refused(caches):
    with pytest.raises(UsageError, match=r"no scene is called 'scene-00x1' \(--train-scenes\)"):
        frames_of(caches, wanted("scene-00x1"))


def test_frames_beyond_a_scenes_end_are_refused(caches):
    with pytest.raises(UsageError, match="no frame is left by --train-scenes"):
        frames_of(caches, wanted("*", frames=(2, None)))


def test_a_frame_in_both_is_refused(caches):
    with pytest.raises(UsageError, match=r"2 frames would be trained on and tested on, e.g. .*scene-0000"):
        require_apart([(0, 0), (0, 1), (1, 1)], [(1, 1), (0, 1)], caches)
    require_apart([(0, 0)], [(1, 0)], caches)


@pytest.mark.parametrize(
    ("text", "found"), [("0:40", (0, 40)), (":40", (0, 40)), ("45:", (45, None)), (":", (0, None)), (None, None)]
)
def test_ranges(text, found):
    assert parse_frames(text, "--train-frames") == found


@pytest.mark.parametrize("text", ["40", "a:b", "5:5", "6:5", "-1:5", "0:5:2"])
def test_other_ranges_are_refused(text):
    with pytest.raises(UsageError, match=f"--train-frames '{text}'"):
        parse_frames(text, "--train-frames")


def test_frames_without_labels_are_left_out_and_none_at_all_is_refused(caches, unlabelled_cache):
    bare = open_cache(unlabelled_cache)
    assert labelled([bare, caches[0]], [(0, 0), (1, 5)]) == [(1, 5)]
    with pytest.raises(UsageError, match=r"none of 2 frames has labels \(points/label\)"):
        labelled([bare], [(0, 0), (0, 1)])
