"""A part made from a part: what stays has the same bits, whatever goes; the id follows from what was cut."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilda_cache.reshape.derive import check_derivable, derive_part, derived_id, narrow_recipe
from hilda_cache.reshape.place import place_part
from hilda_cache.reshape.subset import Cut, subset
from hilda_schema import open_cache
from hilda_schema.errors import CacheCorrupt, UsageError
from hilda_schema.manifest import EncodingInfo
from hilda_schema.storage import LocalStorage, open_storage
from hilda_schema.testing import tiny_cache, tiny_recipe, validate
from hilda_schema.verify import verify
from hilda_schema.writer import finish_store, remove_part, start_store

LAYERS = {"vit": ["2", "4"], "cnn": ["stage1", "stage2"]}
CAMERAS = ["FRONT", "LEFT", "BACK"]
Digests = Callable[[Path], dict[str, dict[str, str]]]


def some(names: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    teachers = draw(some(list(LAYERS)))
    return Cut(
        scenes=draw(st.none() | some(["scene-0000", "scene-0001"])),
        frames=draw(st.sampled_from([":", "0:3", "1:4", "4:", "2:3", ":-1"])),
        cameras=draw(some(CAMERAS)),
        teachers=teachers,
        layers={name: draw(some(LAYERS[name])) for name in teachers},
    )


@pytest.mark.parametrize("encoding", ["grid-float16", "grid-int8", "point-float16", "point-int8"])
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=cuts())
def test_what_stays_has_the_same_bits(stores: dict[str, Path], digests: Digests, encoding: str, cut: Cut) -> None:
    before = once(digests, stores[encoding])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        subset(str(stores[encoding]), out, cut, "a cut")
        validate(out)
        after, cache = digests(out), open_cache(out)
        assert set(cache.camera_names) == set(cut.cameras or ())
        assert {name: [layer.name for layer in info.layers] for name, info in cache.teachers.items()} == {
            name: [layer for layer in LAYERS[name] if layer in cut.layers[name]]  # type: ignore[index]
            for name in LAYERS
            if name in (cut.teachers or ())
        }
        expected = [
            key
            for scene in ("scene-0000", "scene-0001")
            if cut.scenes is None or scene in cut.scenes
            for key in [key for key in before if f"/{scene}/" in key][slice(*_edges(cut.frames))]
        ]
        assert list(after) == expected
        for key, found in after.items():
            assert found == {name: before[key][name] for name in found}
            # An optional column of points is not there where no frame that stays has a point.
            assert {"stamp", "poses", "points/xyz_m", "points/intensity", "points/ground"} <= found.keys()


@lru_cache
def once(digests: Digests, store: Path) -> dict[str, dict[str, str]]:
    return digests(store)


def _edges(frames: str) -> list[int | None]:
    return [int(text) if text else None for text in frames.split(":")]


def test_points_seen_and_neighbours_follow_from_what_stays(stores: dict[str, Path], tmp_path: Path) -> None:
    subset(str(stores["grid-float16"]), tmp_path / "out", Cut(cameras=("BACK",), frames="1:4"), "a cut")
    cache = open_cache(tmp_path / "out")
    table = cache.frames.to_pydict()
    assert table["points_seen"] == [len(set(frame.pairs.point.tolist())) for frame in cache]
    assert table["absent"] == ["{}"] * 6  # LEFT, which is absent in the second frame, is no camera of the store
    assert table["next"] == [1, 2, None, 4, 5, None]


def test_names_of_files_that_only_lost_frames_read_do_not_stay(stores: dict[str, Path], tmp_path: Path) -> None:
    store = str(stores["grid-float16"])
    subset(store, tmp_path / "layers", Cut(layers={"vit": ["4"]}), "")
    subset(store, tmp_path / "frames", Cut(frames="1:2"), "")
    for name, kept in (("layers", True), ("frames", False)):
        for seal in (tmp_path / name / "parts").glob("*/seal.json"):
            assert (b"lidar/scene" in seal.read_bytes()) == kept


def test_the_id_follows_from_part_recipes_and_frames() -> None:
    recipe = tiny_recipe()
    narrow = narrow_recipe(recipe, cameras=["BACK"])
    ids = {
        derived_id("a", recipe, narrow, ["k"]),
        derived_id("b", recipe, narrow, ["k"]),
        derived_id("a", narrow, narrow, ["k"]),
        derived_id("a", recipe, narrow_recipe(recipe, cameras=["LEFT"]), ["k"]),
        derived_id("a", recipe, recipe, ["k"]),
        derived_id("a", recipe, narrow, ["k", "l"]),
    }
    assert len(ids) == 6
    assert all(len(each) == 32 for each in ids)


def test_a_part_comes_from_a_remote_store_with_the_same_bytes(
    stores: dict[str, Path], tree: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(stores["grid-int8"]), "/derive/far", recursive=True)
    cut = Cut(layers={"vit": ["2"]}, teachers=("vit",))
    try:
        subset("memory://derive/far", tmp_path / "far", cut, "")
    finally:
        filesystem.rm("/derive", recursive=True)
    subset(str(stores["grid-int8"]), tmp_path / "near", cut, "")
    assert tree(tmp_path / "far") == tree(tmp_path / "near")


def test_files_are_linked_where_that_works_and_copied_elsewhere(
    tree: Callable[[Path], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny_cache(tmp_path / "store", scenes=1, points=60)
    cut = Cut(layers={"vit": ["4"]})
    subset(str(store), tmp_path / "linked", cut, "")
    shards = list((tmp_path / "linked").rglob("c.0*"))
    assert {path.stat().st_nlink for path in shards} == {2}

    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    subset(str(store), tmp_path / "copied", cut, "")
    assert {path.stat().st_nlink for path in (tmp_path / "copied").rglob("c.0*")} == {1}
    assert tree(tmp_path / "linked") == tree(tmp_path / "copied")
    # Removing parts of one store leaves the other as it is.
    before = tree(tmp_path / "linked")
    for entry in open_cache(store).manifest.parts:
        remove_part(store, entry.part)
    shutil.rmtree(store)
    assert tree(tmp_path / "linked") == before
    assert verify(tmp_path / "linked").sound


def test_a_copy_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tiny_cache(tmp_path / "store", scenes=1, points=60)
    recipe = open_cache(store).manifest.recipe
    entry = open_cache(store).manifest.parts[0]
    victim = store / "parts" / entry.part / "vit/layer_4/tokens/c.0.0.0.0.0"
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(18, "another file system")))
    start_store(tmp_path / "out", recipe, planned_parts=1)
    with pytest.raises(CacheCorrupt, match="tokens"):
        place_part(LocalStorage(store), entry.part, recipe, tmp_path / "out")
    assert list((tmp_path / "out" / "parts").iterdir()) == []
    with pytest.raises(CacheCorrupt, match=r"tokens.*chunk 0 is not what was sealed"):
        subset(str(store), tmp_path / "cut", Cut(cameras=("BACK",)), "")


def test_what_stays_whole_keeps_its_id(grids: Path, tmp_path: Path) -> None:
    """`derive_part` is total: a caller need not know whether anything is cut."""
    cache, storage = open_cache(grids), open_storage(grids)
    recipe, entry = cache.manifest.recipe, cache.manifest.parts[0]
    start_store(tmp_path / "out", recipe, planned_parts=1)
    assert derive_part(storage, entry.part, recipe, tmp_path / "out", recipe) == entry
    finish_store(tmp_path / "out", recipe, [entry])
    validate(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part_frames": 9}, "no more"),
        ({"encoding": EncodingInfo(kind="grid")}, "what lies between the points was never stored"),
        ({"store_points": True}, "no points to take over"),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_reason(change: dict[str, object], message: str) -> None:
    recipe = tiny_recipe("point", store_points=False)
    with pytest.raises(UsageError, match=message):
        check_derivable(recipe, recipe.model_copy(update=change))


def test_names_that_are_not_there_are_refused_with_those_that_are() -> None:
    recipe = tiny_recipe()
    for asked, message in (
        ({"cameras": ["FORNT"]}, "no camera 'FORNT'.*FRONT, LEFT, BACK"),
        ({"teachers": ["vitt"]}, "no teacher 'vitt'.*vit, cnn"),
        ({"layers": {"vit": ["3"]}}, "no layer of vit '3'.*2, 4"),
        ({"layers": {"cnn": ["stage1"]}, "teachers": ["vit"]}, "'cnn' are named, which is no teacher that stays"),
        ({"cameras": []}, "no camera would stay"),
    ):
        with pytest.raises(UsageError, match=message):
            narrow_recipe(recipe, **asked)
