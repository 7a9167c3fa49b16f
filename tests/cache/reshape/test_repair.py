"""Damage and lost recordings: every message names the next command, and that command works."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_cache.extract import ExtractReport, extract
from hilda_cache.options import build_request
from hilda_cache.request import ExtractRequest
from hilda_cache.reshape.forget import forget
from hilda_cache.reshape.merge import merge
from hilda_cache.reshape.subset import Cut, subset
from hilda_schema import open_cache
from hilda_schema.errors import CacheConflict
from hilda_schema.testing import tiny_cache, validate
from hilda_schema.verify import verify
from hilda_schema.writer import read_manifest

Tree = Callable[[Path], dict[str, str]]


def invoke(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stderr


def next_command(said: str) -> list[str]:
    """The words of the last command that a message tells to run."""
    line = [line for line in said.splitlines() if line.lstrip().startswith("-> hilda-cache")][-1]
    return shlex.split(line.partition("-> hilda-cache ")[2])


def request(words: list[str], drive: Path, vit: Path, missing: str = "fail") -> ExtractRequest:
    """What a printed `extract` command asks for, with its placeholders filled in; parsed as the program does."""
    import typer

    command = typer.main.get_command(app).commands["extract"]  # type: ignore[attr-defined]
    filled = [str(drive) if word == "ROOT" else word.replace("SOURCE", str(vit)) for word in words]
    asked = command.make_context("extract", filled).params
    return build_request(
        asked["root"], asked["dataset"], asked["teacher"], asked["layers"], asked["image_size"], asked["norm"],
        asked["option"], asked["lidar"], asked["scenes"], asked["frames"], asked["cameras"], asked["encoding"],
        asked["precision"], missing, asked["part_frames"], asked["no_points"], False, False,
    )  # fmt: skip


def run(asked: ExtractRequest, store: Path, client: Any) -> ExtractReport:
    return extract(asked, store, client, lambda recipe, report: None, lambda report: None)


def asked_words(*more: str) -> list[str]:
    return [
        "ROOT", "--dataset", "nuscenes", "--out", "x", "--teacher", "vit=SOURCE", "--image-size", "56x112",
        "--precision", "float32", "--part-frames", "2", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def extracted(tiny_drive: Path, tiny_vit: Path, dask_client: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny drive, two scenes of three frames. Do not change it."""
    out = tmp_path_factory.mktemp("extracted") / "store"
    assert run(request(asked_words(), tiny_drive, tiny_vit), out, dask_client).complete
    return out


def flip(store: Path, part: str) -> None:
    shard = store / "parts" / part / "vit/layer_4/tokens/c.0.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.unlink()  # it may be shared with another store
    shard.write_bytes(data)


def test_the_printed_commands_lead_back_to_the_same_bytes(
    extracted: Path, tiny_drive: Path, tiny_vit: Path, dask_client: Any, tree: Tree, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(extracted, store)
    part = open_cache(store).manifest.parts[1].part
    lost = [row["key"] for row in open_cache(store).frames.to_pylist() if row["part"] == part]
    flip(store, part)
    code, said = invoke("verify", store)
    assert code == 3
    code, said = invoke(*next_command(said))
    assert code == 0
    assert f"removed part {part}: {lost[0]} to {lost[-1]}" in said
    validate(store)  # complete without them, for whoever has no recordings any more
    words = next_command(said)
    assert words[0] == "extract"
    report = run(request(words[1:], tiny_drive, tiny_vit), store, dask_client)
    assert report.reused == report.planned - 1
    assert tree(store) == tree(extracted)


def test_where_images_are_gone_it_says_so_and_records_them(
    extracted: Path, tiny_drive: Path, tiny_vit: Path, dask_client: Any, tmp_path: Path
) -> None:
    store, drive = tmp_path / "store", tmp_path / "drive"
    shutil.copytree(extracted, store)
    shutil.copytree(tiny_drive, drive)
    entry = open_cache(store).manifest.parts[0]
    flip(store, entry.part)
    gone = sorted((drive / "samples" / "CAM_BACK").iterdir())[0]
    gone.unlink()
    _, said = invoke("repair", store, "--drop-damaged")
    words = next_command(said)[1:]
    assert "--missing skip" in said
    report = run(request(words, drive, tiny_vit), store, dask_client)
    (failure,) = report.failures.values()
    assert gone.name in failure.message
    assert "--missing skip" in failure.remedy
    assert run(request(words, drive, tiny_vit, "skip"), store, dask_client).complete
    absent = [frame.absent for frame in open_cache(store) if frame.absent]
    assert len(absent) == 1
    assert gone.name in absent[0]["CAM_BACK"]
    validate(store)


def test_an_extraction_knows_where_its_frames_stand(
    tiny_drive: Path, tiny_vit: Path, extracted: Path, dask_client: Any, tmp_path: Path
) -> None:
    """A store of some frames does not take the frames around a hole for neighbours."""
    scene = open_cache(extracted).manifest.parts[0].scene
    stores = []
    for frames in ("0:1", "2:3"):
        stores.append(str(tmp_path / frames))
        asked = request(asked_words("--scenes", scene, "--frames", frames), tiny_drive, tiny_vit)
        assert run(asked, Path(stores[-1]), dask_client).complete
    merge(stores, tmp_path / "both")
    table = open_cache(tmp_path / "both").frames.to_pydict()
    assert (table["next"], table["prev"]) == ([None, None], [None, None])
    assert open_cache(extracted).frames["next"].to_pylist() == [1, 2, None, 4, 5, None]
    # What they share with a whole extraction lies in parts that were cut otherwise, and is the same.
    assert merge([*stores, str(extracted)], tmp_path / "all").frames == 6


def test_a_lost_manifest_comes_back_from_its_second_account(
    tiny_drive: Path, tiny_vit: Path, extracted: Path, dask_client: Any, tree: Tree, tmp_path: Path
) -> None:
    """Without that too, the selection is lost, and the way on is said."""
    scene = open_cache(extracted).manifest.parts[0].scene
    asked = request(asked_words("--scenes", scene), tiny_drive, tiny_vit)
    store = tmp_path / "store"
    run(asked, store, dask_client)
    before = tree(store)
    (store / "manifest.json").unlink()
    _, said = invoke("repair", store)
    assert "what only it knew is taken from history.json" in said
    assert tree(store) == before
    for name in ("manifest.json", "history.json"):
        (store / name).unlink()
    _, said = invoke("repair", store)
    assert "manifest.json and history.json were lost" in said
    with pytest.raises(CacheConflict, match=r"selection\.scenes"):
        run(asked, store, dask_client)
    assert f"remove {store}/manifest.json and history.json" in said
    for name in ("manifest.json", "history.json"):
        (store / name).unlink()
    report = run(asked, store, dask_client)
    assert report.reused == report.planned
    assert tree(store) == before


def test_a_lost_manifest_takes_no_request_and_no_ancestor_with_it(tmp_path: Path, tree: Tree) -> None:
    whole, store = tiny_cache(tmp_path / "whole", points=40), tmp_path / "store"
    subset(str(whole), store, Cut(frames="0:4"), "--frames 0:4")
    forget(store, ["scene-0001"], [], "asked for")
    before, known = tree(store), read_manifest(store)
    (store / "manifest.json").write_bytes(b"torn")
    invoke("repair", store)
    assert tree(store) == before
    assert read_manifest(store) == known
    # A part with what was removed, come back from a backup, goes again.
    other = open_cache(whole).manifest.parts[-1].part
    shutil.copytree(whole / "parts" / other, store / "parts" / other)
    (store / "manifest.json").unlink()
    invoke("repair", store)
    assert tree(store) == before


@pytest.mark.parametrize("name", ["history.json", "manifest.json"])
def test_a_second_account_that_differs_is_damage_and_mended(tmp_path: Path, tree: Tree, name: str) -> None:
    store = tiny_cache(tmp_path / "store", points=40)
    before = tree(store)
    content = bytearray((store / name).read_bytes())
    content[len(content) // 2] ^= 1
    (store / name).write_bytes(content)
    assert name in {problem.file for problem in verify(store).problems}
    invoke("repair", store)
    assert tree(store) == before
    (store / "history.json").write_bytes((tiny_cache(tmp_path / "o", kind="point") / "history.json").read_bytes())
    (store / "manifest.json").unlink()
    _, said = invoke("repair", store)  # of another recipe: believed by nobody
    assert "manifest.json and history.json were lost" in said


def test_a_made_store_is_not_extracted_into_and_says_what_else_to_do(
    extracted: Path, tiny_drive: Path, tiny_vit: Path, dask_client: Any, tmp_path: Path
) -> None:
    scene = open_cache(extracted).manifest.parts[0].scene
    subset(str(extracted), tmp_path / "cut", Cut(scenes=(scene,)), "")
    with pytest.raises(CacheConflict, match=r"made from other stores \(subset\)") as caught:
        run(request(asked_words(), tiny_drive, tiny_vit), tmp_path / "cut", dask_client)
    assert "hilda-cache merge" in caught.value.remedy
    flip(tmp_path / "cut", open_cache(tmp_path / "cut").manifest.parts[0].part)
    assert verify(extracted).sound
    _, said = invoke("repair", tmp_path / "cut", "--drop-damaged")
    assert "make it anew from the stores it was made from" in said
    assert "extract" not in said
    validate(tmp_path / "cut")


def test_repair_without_a_manifest_drops_damage_too(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "store", points=40)
    part = open_cache(store).manifest.parts[1].part
    flip(store, part)
    (store / "manifest.json").unlink()
    code, said = invoke("repair", store, "--drop-damaged")
    assert code == 0
    assert f"removed part {part}: toy/" in said
    validate(store)
    shutil.rmtree(store / "parts" / open_cache(store).manifest.parts[0].part)
    (store / "frames.parquet").unlink()
    assert invoke("repair", store, "--drop-damaged")[0] == 0
    validate(store)
