"""Frames that somebody asked to remove: no byte of them stays, whatever interrupts it, and they do not come back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hilda_cache.extract import check_request
from hilda_cache.request import DriveSpec, ExtractRequest
from hilda_cache.reshape.dataset_card import write_card
from hilda_cache.reshape.forget import WITHHELD, forget
from hilda_cache.reshape.repair import repair
from hilda_cache.reshape.subset import Cut, subset
from hilda_schema import open_cache
from hilda_schema.content import PartContent
from hilda_schema.errors import CacheConflict, CacheIncomplete, HildaError, UsageError
from hilda_schema.keys import Key
from hilda_schema.manifest import Recipe, SelectionInfo
from hilda_schema.testing import tiny_cache, tiny_parts, tiny_recipe, validate
from hilda_schema.writer import finish_store, start_store, write_part

Tree = Callable[[Path], dict[str, str]]
SECRET = "face-of-somebody"
KEY = f"toy/scene-0001/{SECRET}"
NUMBER = np.float32(1234.5678)  # a coordinate that only the frame has
FEATURE = np.float16(977.5)


def marked(recipe: Recipe) -> list[PartContent]:
    """Parts of two scenes; the second frame of the second has marks in everything that is stored of it."""
    parts = tiny_parts(recipe, points=40, frames=4)
    k = next(k for k, part in enumerate(parts) if part.scene == "scene-0001")
    frame = parts[k].frames[1]
    xyz_m = frame.xyz_m.copy()
    xyz_m[7] = NUMBER
    tokens = {name: np.where(np.isnan(grid), grid, np.float32(FEATURE)) for name, grid in frame.tokens.items()}
    vectors = {name: np.where(np.isnan(each), each, np.float32(FEATURE)) for name, each in frame.global_tokens.items()}
    changed = replace(
        frame,
        key=Key("toy", "scene-0001", SECRET),
        xyz_m=xyz_m,
        label=np.full(len(xyz_m), 0xBEEF, np.uint16),
        tokens=tokens,
        global_tokens=vectors,
        absent={"LEFT": f"images/{SECRET}.jpg: no such file"},
        world_SE3_lidar=np.diag([1, 1, 1, 1.0]) + np.eye(4, k=3) * 31415.9265,
    )
    sources = parts[k].sources | {f"lidar/{SECRET}.bin": "a" * 64}
    parts[k] = replace(parts[k], frames=(parts[k].frames[0], changed, *parts[k].frames[2:]), sources=sources)
    return parts


def write(store: Path, recipe: Recipe, parts: list[PartContent]) -> Path:
    start_store(store, recipe, planned_parts=len(parts))
    finish_store(store, recipe, [write_part(store, recipe, part) for part in parts])
    return store


CANARIES = (
    SECRET.encode(),
    NUMBER.tobytes() * 3,
    np.full(8, FEATURE).tobytes(),
    b"\xef\xbe" * 8,
    b"31415.9265",
    np.float64(31415.9265).tobytes(),
)


def traces(store: Path) -> set[bytes]:
    """Which marks are anywhere below a folder, in names or bytes."""
    found = set()
    for path in store.rglob("*"):
        data = path.name.encode() + b"\n" + (path.read_bytes() if path.is_file() else b"")
        found |= {canary for canary in CANARIES if canary in data}
    return found


@pytest.fixture
def store(tmp_path: Path) -> Path:
    recipe = tiny_recipe().model_copy(update={"selection": SelectionInfo(scenes=("scene-0000", "scene-0001"))})
    store = write(tmp_path / "store", recipe, marked(recipe))
    write_card(store)
    assert traces(store) == set(CANARIES)
    return store


def test_no_byte_of_a_frame_stays_and_the_others_keep_theirs(
    store: Path, digests: Callable[[Path], dict[str, dict[str, str]]]
) -> None:
    before = digests(store)
    old = open_cache(store).manifest
    (store / "parts" / ".tmp-dead-1-0").mkdir()
    (store / "parts" / ".tmp-dead-1-0" / "half").write_text(SECRET)
    stale = next(entry.part for entry in old.parts if entry.scene == "scene-0001")
    shutil.copytree(store / "parts" / stale, store / "parts" / "unlisted")
    seal = store / "parts" / "unlisted" / "seal.json"
    seal.unlink()  # no part, and not ours to judge
    shutil.rmtree(store / "parts" / "unlisted")

    report = forget(store, [], [KEY], "somebody asked, ticket 7")
    assert (report.frames, report.rewritten, report.dropped, report.linked) == (1, 1, 0, 0)
    assert traces(store) == set()
    validate(store)
    before.pop(KEY)
    assert digests(store) == before
    manifest = open_cache(store).manifest
    assert [each.reason for each in manifest.forgotten] == ["somebody asked, ticket 7"]
    assert [(each.operation, each.root_sha256) for each in manifest.parents] == [("forget", old.root_sha256)]
    assert manifest.software == old.software
    assert "1 frame removed on request: somebody asked, ticket 7" in (store / "README.md").read_text()
    table = open_cache(store).frames.to_pydict()
    first, second = (table["key"].index(f"toy/scene-0001/{name}") for name in ("000000", "000002"))
    assert (table["next"][first], table["prev"][second]) == (None, None)  # the gap is known


def test_a_scene_goes_with_its_name(store: Path) -> None:
    subset(str(store), store.parent / "named", Cut(scenes=("scene-0001",)), "--scenes scene-0001")
    named = store.parent / "named"
    report = forget(store, ["scene-0001"], [], "asked")
    assert (report.frames, report.dropped, report.rewritten) == (4, 2, 0)
    assert report.linked > 0  # the other store, on the same disk, still has them
    assert open_cache(store).manifest.recipe.selection.scenes == ("scene-0000",)
    assert b"scene-0001" not in b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())

    assert traces(named) == set(CANARIES)
    forget(named, ["scene-0001"], [], "asked")
    manifest = open_cache(named).manifest
    assert len(open_cache(named)) == 0
    validate(named)
    assert manifest.parents[0].parents[0].detail == WITHHELD
    assert b"scene-0001" not in b"".join(path.read_bytes() for path in named.rglob("*") if path.is_file())


def test_requests_add_up(store: Path) -> None:
    root = open_cache(store).manifest.root_sha256
    forget(store, [], [KEY], "first")
    forget(store, [], ["toy/scene-0000/000000", "toy/scene-0000/000003"], "second")
    manifest = open_cache(store).manifest
    assert [(each.reason, len(each.frames)) for each in manifest.forgotten] == [("first", 1), ("second", 2)]
    assert [each.root_sha256 for each in manifest.parents] == [root]
    assert manifest.parents[0].parents == ()
    again = forget(store, [], [KEY], "first")
    assert again.frames == 0
    assert open_cache(store).manifest == manifest
    validate(store)


def test_what_is_not_there_is_refused_and_nothing_changes(store: Path, tree: Tree) -> None:
    before = tree(store)
    for scenes, keys, reason, message in (
        (["scene-0010"], [], "r", "scene 'scene-0010' is not in"),
        ([], [KEY, "toy/scene-0001/000009"], "r", "frame 'toy/scene-0001/000009' is not in .*did you mean|frame"),
        ([], [], "r", "nothing is named"),
        ([], [KEY], " ", "reason is empty"),
    ):
        with pytest.raises(UsageError, match=message):
            forget(store, scenes, keys, reason)
    assert tree(store) == before
    partial = tiny_cache(store.parent / "partial", scenes=1, finish=False)
    with pytest.raises(CacheIncomplete, match="not complete"):
        forget(partial, ["scene-0000"], [], "r")


def test_somebody_elses_readme_is_left_alone_and_named(store: Path) -> None:
    (store / "README.md").write_text(f"Our notes on {SECRET}")
    (store / "notes.txt").write_text("more")
    report = forget(store, [], [KEY], "asked")
    assert "README.md was not written by this program" in report.card
    assert report.strangers == ["notes.txt"]
    assert (store / "README.md").read_text() == f"Our notes on {SECRET}"


def test_extraction_does_not_bring_it_back(store: Path, tiny_drive: Path, tmp_path: Path) -> None:
    request = ExtractRequest(DriveSpec("nuscenes", str(tiny_drive)), ())
    forget(store, [], [KEY], "asked")
    with pytest.raises(CacheConflict, match=r"1 frames were removed from .* on request.*bring them back"):
        check_request(request, store)
    subset(str(store), tmp_path / "cut", Cut(cameras=("BACK",)), "")
    assert open_cache(tmp_path / "cut").manifest.forgotten == open_cache(store).manifest.forgotten
    with pytest.raises(CacheConflict, match="on request"):
        check_request(request, tmp_path / "cut")


def small(tmp_path: Path) -> Path:
    recipe = tiny_recipe()
    teacher = recipe.teachers[0]
    recipe = recipe.model_copy(update={"teachers": (teacher.model_copy(update={"layers": teacher.layers[:1]}),)})
    parts = []
    for part in marked(tiny_recipe())[2:]:
        frames = [
            replace(
                frame,
                tokens={("vit", "2"): frame.tokens["vit", "2"]},
                global_tokens={"vit": frame.global_tokens["vit"]},
            )
            for frame in part.frames
        ]
        parts.append(replace(part, frames=tuple(frames)))
    return write(tmp_path / "small", recipe, parts)


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_killed_anywhere_it_is_the_old_store_or_ends_without_the_frame(
    tree: Tree, killed_at: Callable[..., bool], tmp_path: Path, stride: int
) -> None:
    source = small(tmp_path)
    shutil.copytree(source, tmp_path / "expected")
    forget(tmp_path / "expected", [], [KEY], "asked")
    expected, root = tree(tmp_path / "expected"), open_cache(source).manifest.root_sha256
    seen, step, crashed, store = set(), 0, True, tmp_path / "store"
    while crashed:
        step += stride
        crashed = False
        for before in (True, False):
            shutil.copytree(source, store, copy_function=os.link)
            crashed |= killed_at(step, before, lambda: forget(store, [], [KEY], "asked"))
            try:
                state = "old" if open_cache(store).manifest.root_sha256 == root else "new"
            except HildaError as error:
                state = error.code
            seen.add(state)
            if state == "cache.incomplete":
                assert KEY not in open_cache(store, allow_partial=True).frames["key"].to_pylist()
                repair(store, drop_damaged=False)  # what the message of `verify` and of readers leads to
                assert traces(store) == set()
            forget(store, [], [KEY], "asked")
            assert tree(store) == expected, f"step {step}"
            assert traces(store) == set()
            shutil.rmtree(store)
    assert step > 50
    assert seen >= {"old", "new"}
