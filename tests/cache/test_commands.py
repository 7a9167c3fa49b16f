"""What a person or a script sees of each command: words, exit codes, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_schema import open_cache
from hilda_schema.errors import UsageError
from hilda_schema.terminal import EXIT_INCOMPLETE
from hilda_schema.testing import tiny_cache


def invoke(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_info_prints_the_card(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    code, out, _ = invoke("info", store)
    assert code == 0
    assert out.startswith("Teacher cache of toy 1, schema 1.")
    code, out, _ = invoke("info", store, "--json")
    assert code == 0
    card = json.loads(out)
    assert card["totals"].keys() == {
        "frames", "scenes", "parts", "bytes", "points", "points_dropped", "points_seen", "pairs",
        "frames_with_absences", "absences",
    }  # fmt: skip
    assert card["manifest"].keys() >= {"schema_version", "recipe", "state", "parts", "root_sha256", "encoding_error"}


def test_verify_exits_with_0_where_all_is_as_sealed(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    files = sum(path.is_file() for path in store.rglob("*"))
    code, out, said = invoke("verify", store, "--json")
    assert code == 0
    parts = {"parts": 4, "parts_read": 4, "parts_resumed": 0}
    found = {"sound": True, "complete": True, "problems": [], "files": files, "deep": [], "signer": None}
    assert json.loads(out) == found | parts
    assert said.splitlines()[0].startswith(f"files {files}/{files} ")
    assert "all as sealed" in said


@pytest.mark.parametrize("harm", ["flip", "empty", "delete"])
def test_verify_exits_with_3_and_names_the_file_and_the_way_on(tmp_path: Path, harm: str) -> None:
    store = tiny_cache(tmp_path / "cache")
    victim = sorted(store.glob("parts/*/vit/layer_4/tokens/c.*"))[1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "delete":
        victim.unlink()
    else:
        victim.write_bytes(data if harm == "flip" else b"")
    code, out, said = invoke("verify", store, "--json")
    assert code == EXIT_INCOMPLETE
    name = victim.relative_to(store).as_posix()
    assert f"wrong: {name}" in said
    assert [problem.partition(":")[0] for problem in json.loads(out)["problems"]] == [name]
    assert f"  -> hilda-cache repair {store} --drop-damaged\n     removes 1 part" in said


def test_an_unfinished_store_is_not_vouched_for(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache", finish=False)
    parts = sorted((store / "parts").glob("*/seal.json"))
    parts[0].unlink()
    code, _, said = invoke("verify", store)
    assert code == EXIT_INCOMPLETE
    assert f"its extraction has not finished: {len(parts) - 1} of {len(parts)} parts are there" in said
    code, out, _ = invoke("info", store)
    assert code == 0
    assert "partial" in out.splitlines()[0]


def test_deep_needs_the_drive_and_the_teachers(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    with pytest.raises(UsageError, match="--deep needs the drive and the teachers"):
        invoke("verify", store, "--deep", 1)


def test_show_draws_an_unfinished_store_too(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache", finish=False)
    code, _, said = invoke("show", store, "--frame", 1, "--teacher", "cnn", "--out", tmp_path / "frame.png")
    assert (code, said) == (0, f"wrote {tmp_path / 'frame.png'}\n")
    assert (tmp_path / "frame.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=f"has {len(open_cache(store, allow_partial=True))} frames"):
        invoke("show", store, "--frame", 99, "--out", tmp_path / "frame.png")


def test_show_writes_a_page_beside_the_picture(tmp_path: Path) -> None:
    store, png, page = tiny_cache(tmp_path / "cache"), tmp_path / "frame.png", tmp_path / "frame.html"
    words = ("--view", "similarity", "--at", "FRONT:80,60", "--layers", "2,4")
    code, _, said = invoke("show", store, "--out", png, "--html", page, *words)
    assert (code, said) == (0, f"wrote {png}\nwrote {page}\n")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert page.read_text().count('name="layer"') == 2
    with pytest.raises(UsageError, match="nothing to write is named"):
        invoke("show", store)
    with pytest.raises(UsageError, match=r"does not end in \.png"):
        invoke("show", store, "--out", tmp_path / "frame.jpg")
    assert not (tmp_path / "frame.jpg").exists()
    with pytest.raises(UsageError, match="no camera 'REAR'"):
        invoke("show", store, "--html", tmp_path / "no.html", "--at", "REAR:1,1")
    assert not (tmp_path / "no.html").exists()


MISTAKES = """
import sys
from hilda_cache.cli import main

drive, vit, full, out = sys.argv[1:]
start = ["hilda-cache", "extract", drive, "--dataset", "nuscenes", "--teacher", vit, "--out", out]
for mistake in (
    ["--dataset", "nuscene"], ["--scenes", "scene-0009"], ["--cameras", "CAM_FORNT"], ["--frames", "9:"],
    ["--frames", "0-3"], ["--lidar", "both"], ["--out", full], ["--out", vit + "/config.json"], ["--option", "a=b"],
):
    sys.argv = [*start, *mistake]
    try:
        main()
    except SystemExit as stop:
        print("exit", stop.code)
print(sorted({"torch", "distributed"} & set(sys.modules)))
"""


def test_mistakes_are_found_before_anything_starts(tiny_drive: Path, tiny_vit: Path, tmp_path: Path) -> None:
    full = tmp_path / "photos"
    full.mkdir()
    (full / "cat.jpg").write_bytes(b"")
    words = [str(tiny_drive), str(tiny_vit), str(full), str(tmp_path / "store")]
    done = subprocess.run([sys.executable, "-c", MISTAKES, *words], capture_output=True, text=True, check=True)
    *codes, loaded = done.stdout.splitlines()
    assert codes == ["exit 2"] * 6 + ["exit 1"] * 2 + ["exit 2"]
    assert loaded == "[]"  # no model, no worker
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error [")]
    expected = (
        "'nuscene' is not known", "'scene-0009' is not in this drive", "'CAM_FORNT' is not in this drive",
        "holds no frame: --frames 9: of scenes of at most 3 frames", "'0-3' is not a range", "no choice of LiDAR",
        "not empty (it holds 'cat.jpg')", "config.json is a file", "nuscenes has no option 'a'",
    )  # fmt: skip
    assert len(said) == len(expected)
    assert [text for text, line in zip(expected, said, strict=True) if text not in line] == []
    assert not (tmp_path / "store").exists()
