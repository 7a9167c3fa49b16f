"""What a person or a script sees of each command: words, exit codes, JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_schema import open_cache
from hilda_schema.errors import UsageError
from hilda_schema.testing import tiny_cache, validate
from hilda_schema.verify import verify


def invoke(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_subset_and_merge_say_what_they_made(grids: Path, tmp_path: Path) -> None:
    cut = ["--scenes", "scene-0000", "--frames", "0:2", "--cameras", "BACK,FRONT", "--layers", "vit=4"]
    code, _, said = invoke("subset", grids, "--out", tmp_path / "cut", *cut)
    assert code == 0
    cache = open_cache(tmp_path / "cut")
    assert said.splitlines()[-1].startswith(f"{tmp_path / 'cut'}: 2 frames in 1 part, ")
    assert said.rstrip().endswith(f"content sha256:{cache.manifest.root_sha256}")
    assert cache.manifest.parents[0].detail == " ".join(cut)
    assert cache.camera_names == ("FRONT", "BACK")  # in the store's own order
    assert [layer.name for layer in cache.teachers["cnn"].layers] == ["stage1", "stage2"]
    invoke("subset", grids, "-o", tmp_path / "a", "--scenes", "scene-0001")
    invoke("subset", grids, "-o", tmp_path / "b", "--scenes", "scene-0002", "--teachers", "vit,cnn")
    assert invoke("merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c")[0] == 0
    validate(tmp_path / "c")


def test_reencode_says_what_it_lost(stores: dict[str, Path], tmp_path: Path) -> None:
    code, _, said = invoke("reencode", stores["grid-float16"], "--out", tmp_path / "out", "--to", "point-int8")
    assert code == 0
    error = open_cache(tmp_path / "out").manifest.encoding_error["vit/4"]
    assert f"vit/4, against {stores['grid-float16']}: cosine at least {error.cosine_min:.6f}" in said
    _, _, said = invoke("reencode", stores["grid-int8"], "--out", tmp_path / "back", "--to", "grid")
    assert "what int8 lost does not come back" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reencode", "STORE", "-o", "OUT", "--to", "gird"], "--to 'gird' is not known"),
        (["subset", "STORE", "-o", "OUT", "--frames", "1-2"], "'1-2' is not a range"),
        (["subset", "STORE", "-o", "OUT", "--scenes", "scene-0009"], "scene 'scene-0009' is not in"),
        (["subset", "STORE", "-o", "OUT", "--layers", "vit=9"], "no layer of vit '9'"),
        (["subset", "STORE", "-o", "OUT", "--teachers", ","], "names nothing"),
        (["subset", "STORE", "-o", "OUT", "--frames", "9:"], "nothing would stay"),
        (["subset", "STORE", "-o", "OUT", "--layers", "dino=1"], "names teacher 'dino'"),
        (["prune", "OUT"], "no folder of parts here"),
        (["forget", "STORE", "--reason", "r"], "nothing is named"),
        (["card", "OUT", "--write"], "no folder of parts here"),
    ],
)
def test_mistakes_are_one_line(grids: Path, tmp_path: Path, words: list[str], message: str) -> None:
    filled = {"STORE": str(grids), "OUT": str(tmp_path / "out")}
    with pytest.raises(UsageError) as caught:
        invoke(*[filled.get(word, word) for word in words])
    assert message in caught.value.message
    assert not (tmp_path / "out").exists()


def test_prune_forget_and_verify_speak_of_each_other(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "store", points=40)
    (store / "photo.jpg").write_bytes(b"")
    (store / "parts" / ".tmp-dead").write_text("x")
    _, _, said = invoke("verify", store)
    assert f"parts/.tmp-dead and 1 more belongs to nothing; see: hilda-cache prune {store} --dry-run" in said
    _, _, said = invoke("prune", store, "--dry-run")
    assert said.splitlines() == [
        "would remove parts/.tmp-dead", "unknown, left alone: photo.jpg", f"{store}: would remove 1 leftover"
    ]  # fmt: skip
    assert invoke("prune", store)[2].startswith("removed parts/.tmp-dead")
    assert invoke("prune", store)[2].endswith("nothing to remove\n")
    shutil.copy(store / "photo.jpg", tmp_path / "x")
    code, _, said = invoke("forget", store, "--frames", "toy/scene-0000/000001", "--reason", "asked")
    assert code == 0
    assert said.splitlines() == [
        f"{store}: 1 frame removed, 1 part made anew, 0 parts dropped",
        "not looked into, since it is no file of the store: photo.jpg",
    ]
    assert "nothing to remove" in invoke("forget", store, "--frames", "toy/scene-0000/000001", "--reason", "asked")[2]
    assert verify(store).sound


def test_catalog_card_and_migrate_print(grids: Path, tmp_path: Path) -> None:
    code, out, _ = invoke("catalog", grids.parent, "--json")
    assert code == 0
    assert [row["store"] for row in json.loads(out)] == ["grids"]
    assert invoke("catalog", tmp_path)[2] == f"no cache under {tmp_path}\n"
    assert invoke("card", grids)[1].startswith("---\n")
    store = tiny_cache(tmp_path / "store", scenes=1, points=40)
    assert invoke("card", store, "--write")[2] == f"wrote {store}/README.md\n"
    assert (store / "README.md").read_text() == invoke("card", store)[1]
    assert "nothing to do" in invoke("migrate", store, "--dry-run")[2]
    assert "nothing to do" in invoke("migrate", store)[2]
