"""Completion as a shell asks for it: a process with the line in its environment, and nothing heavy in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hilda_cache import completion as cache_words
from hilda_cache.drives import DATASETS
from hilda_cache.options import ENCODINGS
from hilda_schema.completion import folders, named_manifests, scene_list_of_store
from hilda_schema.testing import tiny_cache
from hilda_train import completion as train_words
from hilda_train.commands import DEVICES
from hilda_train.evaluate.classes import class_files
from hilda_train.evaluate.corruptions import CORRUPTIONS
from hilda_train.export import TARGETS
from hilda_train.recipes import recipe_names

MODULES = {"hilda-cache": "hilda_cache.cli", "hilda-train": "hilda_train.cli"}
HEAVY = ("torch", "numpy", "zarr", "pyarrow", "rich", "dask", "fsspec", "yaml")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cache(tmp_path_factory.mktemp("a folder") / "cache", scenes=2, frames=2, points=10)


def complete(line: str, shell: str = "bash") -> list[str]:
    """What is suggested behind the line's last word."""
    program = line.split()[0]
    variables = {f"_{program.replace('-', '_').upper()}_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        variables |= {"COMP_WORDS": line, "COMP_CWORD": str(len(line.replace("\\ ", "").split(" ")) - 1)}
    else:
        variables |= {"_TYPER_COMPLETE_ARGS": line}
    code = f"""
import atexit, sys
sys.argv = [{program!r}]
atexit.register(lambda: print(sorted(set({HEAVY!r}) & set(sys.modules)), len(sys.modules), file=sys.stderr))
from {MODULES[program]} import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, timeout=60
    )
    loaded, _, count = done.stderr.rpartition(" ")
    assert loaded == "[]", done.stderr
    assert int(count) < 400
    return done.stdout.split()


def test_words_of_the_store_named_before(store: Path) -> None:
    quoted = str(store).replace(" ", "\\ ")
    assert complete(f"hilda-cache show {quoted} --teacher ") == ["vit", "cnn"]
    assert complete(f"hilda-cache subset {quoted} --layers 2,st") == ["2,stage1", "2,stage2"]
    assert complete(f"hilda-train probe run --cache {quoted} --test-scenes scene-0001") == ["scene-0001"]
    assert complete("hilda-cache show nowhere --teacher ") == []


def test_fixed_words_and_packaged_names() -> None:
    assert complete("hilda-cache plan data -d k") == ["kitti_raw"]
    assert "scalr" in complete("hilda-train fit sc")
    assert complete("hilda-train probe run --classes panda") == ["pandaset", "pandaset17"]
    zsh = complete("hilda-train export run --to mm", "zsh")
    assert any("mmdet3d-spconv" in word for word in zsh)
    assert {"merge", "migrate"} <= set(complete("hilda-cache m"))


def test_the_words_are_those_of_the_code() -> None:
    assert set(DATASETS) == set(cache_words.DATASETS)
    assert tuple(ENCODINGS) == cache_words.ENCODINGS
    assert DEVICES == train_words.DEVICES
    assert set(TARGETS) == set(train_words.EXPORT_TARGETS)
    assert tuple(CORRUPTIONS) == train_words.CORRUPTIONS
    assert tuple(train_words.recipes()) == tuple(recipe_names())
    assert tuple(train_words.classes()) == tuple(class_files())
    assert set(train_words.protocols()) == {"quick", "scalr", "slidr", "superflow"}


def test_strange_manifests_suggest_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k, data in enumerate((b"", b"[]", b"{}", b'{"parts": 7, "recipe": null}', b"[" * 100_000, b"\xff")):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "manifest.json").write_bytes(data)
    monkeypatch.setenv("COMP_WORDS", f"hilda-cache subset {' '.join(str(tmp_path / str(k)) for k in range(6))} 'open")
    assert len(list(named_manifests())) == 2
    assert scene_list_of_store(None, "") == []


def test_folders_and_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cache-a", "cache-b/parts", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cache-c").touch()
    monkeypatch.chdir(tmp_path)
    assert folders(None, "ca") == ["cache-a", "cache-b"]
    assert folders(None, "cache-b/") == ["cache-b/parts"]
    assert folders(None, "") == ["cache-a", "cache-b"]
    assert folders(None, "s3://bucket/x") == folders(None, "nowhere/") == []
