"""Parts appear whole or not at all; the same inputs end in the same bytes, whatever interrupted the way there."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hilda_schema.content import FrameContent, PartContent
from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheError, CacheIncomplete, CacheNotFound, UsageError
from hilda_schema.manifest import PartEntry, Recipe
from hilda_schema.reader import open_cache
from hilda_schema.testing import tiny_cache, tiny_parts, tiny_recipe, validate
from hilda_schema.verify import verify
from hilda_schema.writer import (
    existing_part,
    finish_store,
    read_manifest,
    rebuild,
    remove_part,
    sealed_parts,
    start_store,
    sweep_temporary,
    write_part,
)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power; forcing every file to disk would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def small_recipe() -> Recipe:
    """One teacher with one layer: few files, so that every step of writing them can be tried."""
    recipe = tiny_recipe(dtype="int8")
    teacher = recipe.teachers[0]
    return recipe.model_copy(update={"teachers": (teacher.model_copy(update={"layers": teacher.layers[:1]}),)})


def tree(store: Path) -> dict[str, str]:
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in store.rglob("*")
    }


def extract(store: Path, recipe: Recipe, parts: list[PartContent]) -> None:
    """What an extraction does, also one that goes on after a crash."""
    start_store(store, recipe, planned_parts=len(parts))
    sweep_temporary(store)
    finish_store(store, recipe, [write_part(store, recipe, part) for part in parts])


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; its exit code, 0 where the work returned."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def crash_points(tmp_path: Path, killed_at: Callable[..., bool], stride: int) -> tuple[int, list[str]]:
    recipe = small_recipe()
    parts = tiny_parts(recipe, scenes=1, frames=4, points=40)
    extract(tmp_path / "reference", recipe, parts)
    expected = tree(tmp_path / "reference")
    wrong, step, crashed = [], 0, True
    while crashed:
        step += stride
        crashed = False
        for before in (True, False):
            store = tmp_path / f"store-{step}-{before}"

            crashed |= killed_at(step, before, lambda store=store: extract(store, recipe, parts))
            named = sealed_parts(store) if store.exists() else []
            torn = [part for part in named if existing_part(store, part, recipe.digest(), recipe) is None]
            wrong += [f"step {step}: part {part} has its final name but is not whole" for part in torn]
            extract(store, recipe, parts)
            if tree(store) != expected:
                wrong.append(f"step {step}: the tree differs")
            shutil.rmtree(store)
    return step, wrong


def test_a_crash_at_any_step_leaves_nothing_wrong(tmp_path: Path, killed_at: Callable[..., bool]) -> None:
    steps, wrong = crash_points(tmp_path, killed_at, stride=7)
    assert wrong == []
    assert steps > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_crash_at_every_step_leaves_nothing_wrong(tmp_path: Path, killed_at: Callable[..., bool]) -> None:
    steps, wrong = crash_points(tmp_path, killed_at, stride=1)
    assert wrong == []
    assert steps > 100


def test_crash_points_would_notice_a_writer_without_temporary_names(
    tmp_path: Path, killed_at: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above bites: writing straight to the final name fails it."""
    monkeypatch.setattr("hilda_schema.writer.temporary_path", lambda store, part: store / "parts" / part)
    monkeypatch.setattr(Path, "rename", lambda self, target: target)
    with pytest.raises(CacheError):
        crash_points(tmp_path, killed_at, stride=25)


def test_same_inputs_same_bytes_in_any_order(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    parts = tiny_parts(recipe)
    extract(tmp_path / "a", recipe, parts)
    extract(tmp_path / "b", recipe, parts[::-1])
    extract(tmp_path / "b", recipe, parts)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    validate(tmp_path / "a")


def test_nothing_of_the_machine_is_in_the_store(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    for path in store.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert str(tmp_path).encode() not in data
            assert str(Path.home()).encode() + b"/" not in data


def test_a_full_disk_is_said_in_one_line_and_leaves_no_part(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    part = tiny_parts(recipe)[0]
    store = tmp_path / "cache"
    start_store(store, recipe, planned_parts=1)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write_part(store, recipe, part)
        except CacheError as error:
            os._exit(7 if "disk full" in error.message and error.remedy else 8)

    assert in_child(work) == 7
    assert list((store / "parts").iterdir()) == []
    write_part(store, recipe, part)
    assert sealed_parts(store) == [part.part]


def test_a_manifest_survives_a_full_disk(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    before = tree(store)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            rebuild(store)
        except CacheError as error:
            os._exit(7 if "disk full" in error.message else 8)

    assert in_child(work) == 7
    assert tree(store) == before


def test_a_folder_without_permission_is_said_in_one_line() -> None:
    recipe = tiny_recipe()
    parts = tiny_parts(recipe)
    # Not in pytest's folder, which only its owner may enter.
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    store = place / "cache"

    def work() -> None:
        start_store(store, recipe, planned_parts=len(parts))
        (store / "parts").chmod(0o555)
        if os.getuid() == 0:
            os.seteuid(65534)  # root may write anywhere
        try:
            write_part(store, recipe, parts[0])
        except CacheError as error:
            os._exit(7 if "no permission" in error.message else 8)

    assert in_child(work) == 7
    shutil.rmtree(place)


def write_twice(store: Path, recipe: Recipe, part: PartContent, start: object, results: object) -> None:
    start.wait()
    results.put(write_part(store, recipe, part))


def test_two_writers_of_one_part_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    recipe = small_recipe()
    part = tiny_parts(recipe, points=40)[0]
    for attempt in range(4):
        store = tmp_path / f"cache-{attempt}"
        start_store(store, recipe, planned_parts=1)
        start, results = context.Event(), context.SimpleQueue()
        arguments = (store, recipe, part, start, results)
        writers = [context.Process(target=write_twice, args=arguments) for _ in range(3)]
        for writer in writers:
            writer.start()
        start.set()
        entries = [results.get() for _ in writers]
        for writer in writers:
            writer.join()
        assert entries[0] == entries[1] == entries[2]
        assert [path.name for path in (store / "parts").iterdir()] == [part.part]
        finish_store(store, recipe, entries[:1])
        validate(store)


def test_a_damaged_part_in_the_way_is_replaced(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    before = tree(store)
    recipe = tiny_recipe()
    part = tiny_parts(recipe)[1]
    (store / "parts" / part.part / "points/xyz_m/c.0.0").unlink()
    assert existing_part(store, part.part, recipe.digest()) is None
    write_part(store, recipe, part)
    assert tree(store) == before
    shutil.rmtree(store / "parts" / part.part)
    (store / "parts" / part.part).write_text("not a folder")
    write_part(store, recipe, part)
    assert tree(store) == before


def test_removing_a_part_makes_room_for_it_again(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    before = tree(store)
    recipe = tiny_recipe()
    part = tiny_parts(recipe)[0]
    remove_part(store, part.part)
    assert part.part not in sealed_parts(store)
    assert [problem.file for problem in verify(store).problems] == [f"parts/{part.part}/seal.json"]
    write_part(store, recipe, part)
    assert tree(store) == before


def test_existing_part_is_found_and_says_the_same(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    parts = tiny_parts(recipe)
    store = tmp_path / "cache"
    start_store(store, recipe, planned_parts=2)
    entry = write_part(store, recipe, parts[0])
    assert isinstance(entry, PartEntry)
    assert existing_part(store, parts[0].part, recipe.digest()) == entry
    assert existing_part(store, parts[1].part, recipe.digest()) is None
    size = sum(path.stat().st_size for path in (store / "parts" / entry.part).rglob("*") if path.is_file())
    assert entry.bytes == size
    assert entry.frames == len(parts[0].frames)
    with pytest.raises(CacheConflict, match="another recipe"):
        existing_part(store, parts[0].part, tiny_recipe("point").digest())


def test_sweeping_removes_what_dead_writers_left(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    before = tree(store)
    (store / "parts/.tmp-abc-1-0/points").mkdir(parents=True)
    (store / "parts/.tmp-abc-1-0/points/zarr.json").write_text("{")
    (store / "parts/.tmp-manifest.json-1-0").write_text("half")
    (store / "parts/.tmp-link").symlink_to(tmp_path)
    report = verify(store)
    assert report.sound
    assert report.extra == ["parts/.tmp-abc-1-0", "parts/.tmp-link", "parts/.tmp-manifest.json-1-0"]
    assert len(sweep_temporary(store)) == 3
    assert tree(store) == before
    assert tmp_path.is_dir()


def test_the_root_is_derived_from_the_seals(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    before = tree(store)
    for name in ("frames.parquet", "zarr.json"):
        (store / name).unlink()
    rebuild(store)
    assert tree(store) == before
    (store / "manifest.json").write_text("{")
    with pytest.raises(CacheCorrupt, match="manifest"):
        read_manifest(store)
    manifest = rebuild(store)
    validate(store)
    # Everything but the note of who wrote it comes back.
    original = tiny_cache(tmp_path / "again")
    but = {"software": {}, "self_sha256": ""}
    assert manifest.model_copy(update=but) == read_manifest(original).model_copy(update=but)


def test_rebuilding_nothing_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "cache"
    (store / "parts").mkdir(parents=True)
    with pytest.raises(CacheNotFound):
        read_manifest(store)
    with pytest.raises(CacheCorrupt, match="no part"):
        rebuild(store)


def test_finishing_needs_every_planned_part(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    parts = tiny_parts(recipe)
    store = tmp_path / "cache"
    start_store(store, recipe, planned_parts=len(parts))
    entries = [write_part(store, recipe, part) for part in parts[:-1]]
    with pytest.raises(CacheIncomplete, match="3 of 4 parts"):
        finish_store(store, recipe, entries)
    assert read_manifest(store).state == "partial"
    forged = entries[0].model_copy(update={"seal_sha256": "0" * 64})
    with pytest.raises(CacheCorrupt, match="changed"):
        finish_store(store, recipe, [forged, *entries[1:]])


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    with pytest.raises(CacheConflict, match="another recipe"):
        start_store(store, tiny_recipe("point"), planned_parts=1)
    with pytest.raises(CacheConflict, match="another recipe"):
        finish_store(store, tiny_recipe("point"), [])
    assert open_cache(store).manifest.state == "complete"


def test_a_frame_in_two_parts_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    part = tiny_parts(recipe)[0]
    store = tmp_path / "cache"
    start_store(store, recipe, planned_parts=2)
    twice = [write_part(store, recipe, part), write_part(store, recipe, replace(part, part="other"))]
    with pytest.raises(CacheConflict, match="toy/scene-0000/000000 is in two parts"):
        finish_store(store, recipe, twice)


def test_neighbours_in_time_know_gaps(tmp_path: Path) -> None:
    recipe = tiny_recipe(part_frames=2)
    parts = tiny_parts(recipe, scenes=2, frames=6)
    del parts[1]  # frames 2 and 3 of the first scene
    store = tmp_path / "cache"
    extract(store, recipe, parts)
    table = open_cache(store).frames.to_pydict()
    frames = [(key.split("/")[1][-1], int(frame)) for key, frame in zip(table["key"], table["frame"], strict=True)]
    assert frames == [("0", 0), ("0", 1), ("0", 4), ("0", 5), *(("1", k) for k in range(6))]
    assert table["prev"] == [None, 0, None, 2, None, 4, 5, 6, 7, 8]
    assert table["next"] == [1, None, 3, None, 5, 6, 7, 8, 9, None]
    assert table["index"] == list(range(10))


def with_frame(part: PartContent, change: Callable[[FrameContent], FrameContent]) -> PartContent:
    return replace(part, frames=(part.frames[0], change(part.frames[1]), *part.frames[2:]))


def damaged_tokens(value: float, camera: int) -> Callable[[FrameContent], FrameContent]:
    def change(frame: FrameContent) -> FrameContent:
        tokens = {name: grid.copy() for name, grid in frame.tokens.items()}
        tokens["vit", "4"][camera, 2, 3, 1] = value
        return replace(frame, tokens=tokens)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged_tokens(np.nan, 2), "000001, camera BACK, layer vit/4: the teacher's output is not finite"),
        (damaged_tokens(-np.inf, 0), "000001, camera FRONT, layer vit/4: the teacher's output is not finite"),
        (damaged_tokens(1e5, 2), "000001, camera BACK, layer vit/4: a feature is too large for float16"),
        (damaged_tokens(0.0, 1), "000001, camera LEFT, layer vit/4: features of an absent camera"),
        (lambda f: replace(f, xyz_m=f.xyz_m * np.float32(np.nan)), "xyz_m has values that are not finite"),
        (lambda f: replace(f, xyz_m=f.xyz_m.astype(np.float64)), "xyz_m is float64"),
        (lambda f: replace(f, ring=f.ring[:-1]), "ring is uint8"),
        (lambda f: replace(f, label=None), "some frames have label and some have not"),
        (lambda f: replace(f, global_tokens={}), "not those of the recipe"),
        (lambda f: replace(f, absent={}), "layer cnn/stage1: the teacher's output is not finite|layer vit/2"),
        (lambda f: replace(f, world_SE3_lidar=np.eye(3)), "not a finite 4 x 4 pose"),
        (lambda f: replace(f, stamp_ns=0), "does not come after"),
        (lambda f: replace(f, pairs=replace(f.pairs, uv_px=f.pairs.uv_px + 200)), "outside its image"),
        (lambda f: replace(f, pairs=replace(f.pairs, point=f.pairs.point[::-1].copy())), "not sorted"),
        (lambda f: replace(f, pairs=replace(f.pairs, point=f.pairs.point + np.uint32(400))), "not there"),
        (lambda f: replace(f, pairs=replace(f.pairs, camera=np.ones_like(f.pairs.camera))), "absent"),
        (lambda f: replace(f, pairs=replace(f.pairs, depth_m=-f.pairs.depth_m)), "depth"),
    ],
)
def test_wrong_content_is_refused_by_name(
    tmp_path: Path, change: Callable[[FrameContent], FrameContent], message: str
) -> None:
    recipe = tiny_recipe()
    store = tmp_path / "cache"
    start_store(store, recipe, planned_parts=1)
    with pytest.raises(CacheError, match=message):
        write_part(store, recipe, with_frame(tiny_parts(recipe)[0], change))
    assert list((store / "parts").iterdir()) == []


def test_large_features_fit_in_int8(tmp_path: Path) -> None:
    recipe = tiny_recipe(dtype="int8")
    part = with_frame(tiny_parts(recipe)[0], damaged_tokens(1e5, 2))
    store = tmp_path / "cache"
    extract(store, recipe, [part])
    found = open_cache(store)[1].token_grid("vit", 4)[2, 2, 3, 1]
    assert found == pytest.approx(1e5, rel=0.01)


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "", "a\\b", "a\n", "x" * 200, "\u00e9"])
def test_part_ids_are_plain_file_names(tmp_path: Path, name: str) -> None:
    recipe = tiny_recipe()
    store = tmp_path / "cache"
    start_store(store, recipe, planned_parts=1)
    with pytest.raises(CacheError, match="plain file name"):
        write_part(store, recipe, replace(tiny_parts(recipe)[0], part=name))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_names_that_cannot_lie_side_by_side_are_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    vit, cnn = recipe.teachers

    def start(*teachers: object) -> None:
        start_store(tmp_path / "cache", recipe.model_copy(update={"teachers": teachers}), planned_parts=1)

    with pytest.raises(UsageError, match="'pairs'"):
        start(vit.model_copy(update={"name": "pairs"}))
    with pytest.raises(UsageError, match="one name"):
        start(vit, cnn.model_copy(update={"name": "VIT"}))
    with pytest.raises(UsageError, match="one name"):
        start(vit.model_copy(update={"layers": vit.layers[:1] * 2}))
    assert not (tmp_path / "cache").exists()


def test_a_store_of_points_alone(tmp_path: Path) -> None:
    """A drive without cameras makes a store without pairs, which readers take."""
    recipe = tiny_recipe()
    bare = recipe.model_copy(update={"teachers": (), "dataset": recipe.dataset.model_copy(update={"cameras": ()})})
    parts = []
    for part in tiny_parts(recipe, scenes=1):
        frames = tuple(
            replace(frame, tokens={}, global_tokens={}, absent={}, pairs=tiny_no_pairs(frame)) for frame in part.frames
        )
        parts.append(replace(part, camera_sizes_px={}, frames=frames))
    extract(tmp_path / "cache", bare, parts)
    validate(tmp_path / "cache")
    frame = open_cache(tmp_path / "cache")[0]
    assert len(frame.points) == 400
    assert len(frame.pairs) == 0
    assert frame.present.shape == (0,)


def tiny_no_pairs(frame: FrameContent) -> object:
    fields = ("point", "camera", "uv_px", "depth_m", "visible")
    return replace(frame.pairs, **{name: getattr(frame.pairs, name)[:0] for name in fields})
