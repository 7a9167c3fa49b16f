"""Stores united: nobody's order changes a byte, what differs is refused with a table, and a killed merge goes on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilda_cache.reshape.forget import forget
from hilda_cache.reshape.merge import merge
from hilda_cache.reshape.subset import Cut, subset
from hilda_cache.reshape.target import parent_of
from hilda_schema import open_cache
from hilda_schema.content import PartContent
from hilda_schema.errors import CacheConflict, CacheIncomplete, UsageError
from hilda_schema.manifest import GENERATIONS, Manifest, Recipe
from hilda_schema.testing import tiny_cache, tiny_parts, tiny_recipe, validate
from hilda_schema.writer import finish_store, start_store, write_part

SCENES = ("scene-0000", "scene-0001", "scene-0002")
Tree = Callable[[Path], dict[str, str]]
Digests = Callable[[Path], dict[str, dict[str, str]]]


def write(store: Path, recipe: Recipe, parts: list[PartContent]) -> Path:
    start_store(store, recipe, planned_parts=len(parts))
    finish_store(store, recipe, [write_part(store, recipe, part) for part in parts])
    return store


def root(store: Path) -> str:
    return open_cache(store).manifest.root_sha256


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(st.sets(st.sampled_from(SCENES), min_size=1), min_size=3, max_size=3),
    order=st.permutations(range(3)),
)
def test_merging_commutes_associates_and_repeats(
    grids: Path, tree: Tree, digests: Digests, chosen: list[set[str]], order: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        stores = [str(base / name) for name in "abc"]
        for out, scenes in zip(stores, chosen, strict=True):
            subset(str(grids), Path(out), Cut(scenes=tuple(sorted(scenes))), "--scenes " + ",".join(sorted(scenes)))
        merge(stores, base / "at once")
        expected = tree(base / "at once")
        merge([stores[k] for k in order], base / "another order")
        merge([stores[order[0]], stores[order[1]]], base / "two")
        merge([str(base / "two"), stores[order[2]]], base / "left")
        merge([stores[order[1]], stores[order[2]]], base / "others")
        merge([str(base / "others"), stores[order[0]]], base / "right")
        merge([str(base / "left"), str(base / "right"), stores[0]], base / "again")
        for name in ("another order", "left", "right", "again"):
            assert tree(base / name) == expected, name
        validate(base / "at once")
        whole = digests(grids)
        asked = set().union(*chosen)
        assert digests(base / "at once") == {key: found for key, found in whole.items() if key.split("/")[1] in asked}
        if asked == set(SCENES):
            assert root(base / "at once") == root(grids)  # the content, whatever its history


def test_a_cut_of_a_merge_is_a_merge_of_cuts(grids: Path, tmp_path: Path) -> None:
    cut = Cut(cameras=("BACK", "FRONT"), layers={"vit": ["4"]})
    parts = [tmp_path / "one", tmp_path / "two"]
    for out, scenes in zip(parts, (SCENES[:1], SCENES[1:]), strict=True):
        subset(str(grids), out, Cut(scenes=scenes), "")
        subset(str(out), tmp_path / f"cut {out.name}", cut, "")
    merge([str(out) for out in parts], tmp_path / "whole")
    subset(str(tmp_path / "whole"), tmp_path / "cut after", cut, "")
    merge([str(tmp_path / "cut one"), str(tmp_path / "cut two")], tmp_path / "cut before")
    assert root(tmp_path / "cut after") == root(tmp_path / "cut before")


def test_frames_in_differently_cut_parts_are_kept_once(
    grids: Path, tree: Tree, digests: Digests, tmp_path: Path
) -> None:
    subset(str(grids), tmp_path / "a", Cut(frames="0:3"), "")
    subset(str(grids), tmp_path / "b", Cut(frames="2:5"), "")
    subset(str(grids), tmp_path / "c", Cut(frames="1:4"), "")
    merge([str(tmp_path / name) for name in "abc"], tmp_path / "one")
    merge([str(tmp_path / name) for name in "cba"], tmp_path / "other")
    assert tree(tmp_path / "one") == tree(tmp_path / "other")
    validate(tmp_path / "one")
    assert digests(tmp_path / "one") == digests(grids)
    assert open_cache(tmp_path / "one").frames["next"].to_pylist().count(None) == len(SCENES)


def test_different_recipes_are_refused_with_a_table(tmp_path: Path) -> None:
    one, other = tiny_cache(tmp_path / "one", scenes=1), tiny_cache(tmp_path / "other", scenes=1, kind="point")
    with pytest.raises(CacheConflict) as caught:
        merge([str(one), str(other)], tmp_path / "out")
    lines = caught.value.message.splitlines()
    assert "different recipes" in lines[0]
    assert lines[1].split()[0] == "field"
    assert set(lines[1].split()[1:]) == {"one", "other"}
    assert [line.split() for line in lines[2:]] in (
        [["encoding.kind", "grid", "point"]],
        [["encoding.kind", "point", "grid"]],
    )
    assert not (tmp_path / "out").exists()


def changed(parts: list[PartContent], part: str | None = None) -> list[PartContent]:
    """The same frames with one feature changed, in the last part."""
    last = parts[-1]
    tokens = {name: grid.copy() for name, grid in last.frames[0].tokens.items()}
    tokens["vit", "4"][0, 0, 0, 0] += 1
    frames = (replace(last.frames[0], tokens=tokens), *last.frames[1:])
    return [*parts[:-1], replace(last, frames=frames, part=part or last.part)]


def test_different_bytes_of_a_part_are_refused_with_a_table(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    parts = tiny_parts(recipe, scenes=1, points=60)
    one, other = write(tmp_path / "one", recipe, parts), write(tmp_path / "other", recipe, changed(parts))
    with pytest.raises(CacheConflict) as caught:
        merge([str(one), str(other)], tmp_path / "out")
    assert f"different bytes for part {parts[-1].part}" in caught.value.message
    assert "files.vit/layer_4/tokens/c.0.0.0.0.0.sha256" in caught.value.message


def test_different_content_of_a_frame_is_refused_with_a_table(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    parts = tiny_parts(recipe, scenes=1, points=60)
    one = write(tmp_path / "one", recipe, parts)
    other = write(tmp_path / "other", recipe, changed(parts, "another-id"))
    with pytest.raises(CacheConflict) as caught:
        merge([str(one), str(other)], tmp_path / "out")
    header, row = caught.value.message.splitlines()[1:]
    assert header.split() == ["frame", "what", "differs", "part", "other", "part"]
    assert row.split()[:2] == ["toy/scene-0000/000003", "vit/layer_4/tokens"]
    with pytest.raises(CacheConflict, match="toy/scene-0000/000003"):
        merge([str(other), str(one)], tmp_path / "out")


def test_what_was_forgotten_does_not_come_back(grids: Path, tmp_path: Path) -> None:
    shutil.copytree(grids, tmp_path / "clean")
    forget(tmp_path / "clean", [], ["toy/scene-0001/000002"], "a request")
    with pytest.raises(CacheConflict, match=r"toy/scene-0001/000002 was removed from .*clean on request") as caught:
        merge([str(grids), str(tmp_path / "clean")], tmp_path / "out")
    assert f"hilda-cache forget {grids} --frames toy/scene-0001/000002" in caught.value.remedy
    shutil.copytree(grids, tmp_path / "second")
    forget(tmp_path / "second", [], ["toy/scene-0001/000002"], "another request")
    merged = merge([str(tmp_path / "second"), str(tmp_path / "clean")], tmp_path / "out")
    assert sorted(each.reason for each in merged.forgotten) == ["a request", "another request"]
    assert merged.root_sha256 == root(tmp_path / "clean")


def test_the_history_says_what_was_merged_and_from_what(grids: Path, tmp_path: Path) -> None:
    subset(str(grids), tmp_path / "a", Cut(scenes=SCENES[:1]), "--scenes scene-0000")
    subset(str(grids), tmp_path / "b", Cut(scenes=SCENES[1:2]), "--scenes scene-0001")
    manifest = merge([str(tmp_path / "b"), str(tmp_path / "a")], tmp_path / "out")
    assert manifest.recipe.selection.scenes == SCENES[:2]
    assert [parent.root_sha256 for parent in manifest.parents] == sorted(root(tmp_path / name) for name in "ab")
    assert {parent.operation for parent in manifest.parents} == {"merge"}
    (grandparent,) = manifest.parents[0].parents
    assert (grandparent.operation, grandparent.root_sha256) == ("subset", root(grids))
    assert grandparent.detail in ("--scenes scene-0000", "--scenes scene-0001")


def test_a_long_history_loses_its_oldest_generations(grids: Path) -> None:
    manifest = open_cache(grids).manifest
    for _ in range(GENERATIONS + 3):
        manifest = manifest.model_copy(update={"parents": (parent_of(manifest, "subset", ""),)})
    assert Manifest.from_bytes(manifest.to_bytes(), "here").parents == manifest.parents
    generations, parents = 0, manifest.parents
    while parents:
        generations, parents = generations + 1, parents[0].parents
    assert generations == GENERATIONS


def test_the_way_is_not_laid_over_anything_else(grids: Path, tree: Tree, tmp_path: Path) -> None:
    subset(str(grids), tmp_path / "a", Cut(scenes=SCENES[:1]), "")
    before = tree(tmp_path / "a")
    with pytest.raises(UsageError, match="is the store to read from"):
        merge([str(grids), str(tmp_path / "a")], tmp_path / "a")
    with pytest.raises(CacheConflict, match="is another store"):
        subset(str(grids), tmp_path / "a", Cut(scenes=SCENES[1:]), "")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(CacheConflict, match="not empty"):
        merge([str(grids)], tmp_path / "photos")
    assert tree(tmp_path / "a") == before
    subset(str(grids), tmp_path / "a", Cut(scenes=SCENES[:1]), "")  # the same again
    assert tree(tmp_path / "a") == before
    partial = tiny_cache(tmp_path / "partial", scenes=1, finish=False)
    with pytest.raises(CacheIncomplete):
        merge([str(grids), str(partial)], tmp_path / "out")


def small_recipe() -> Recipe:
    """One teacher with one layer: few files, so that every step of writing them can be tried."""
    recipe = tiny_recipe()
    teacher = recipe.teachers[0]
    return recipe.model_copy(update={"teachers": (teacher.model_copy(update={"layers": teacher.layers[:1]}),)})


@pytest.mark.parametrize("stride", [31, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_merge_killed_anywhere_ends_in_the_same_bytes(
    tree: Tree, killed_at: Callable[..., bool], tmp_path: Path, stride: int
) -> None:
    recipe = small_recipe()
    parts = tiny_parts(recipe, scenes=1, frames=4, points=40)
    write(tmp_path / "whole", recipe, parts)
    subset(str(tmp_path / "whole"), tmp_path / "a", Cut(frames="0:3"), "")
    subset(str(tmp_path / "whole"), tmp_path / "b", Cut(frames="1:4"), "")  # its first part is cut again
    sources = [str(tmp_path / "a"), str(tmp_path / "b")]
    merge(sources, tmp_path / "expected")
    expected, before = tree(tmp_path / "expected"), [tree(Path(source)) for source in sources]
    step, crashed, out = 0, True, tmp_path / "out"
    while crashed:
        step += stride
        crashed = False
        for first in (True, False):
            crashed |= killed_at(step, first, lambda: merge(sources, out))
            merge(sources, out)
            assert tree(out) == expected, f"step {step}"
            shutil.rmtree(out)
    assert step > 60
    assert [tree(Path(source)) for source in sources] == before
