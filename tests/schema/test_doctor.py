"""The block for an issue: true, complete, and nothing in it that names a person or a machine."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from hilda_schema import __version__, doctor


def run(program: str, *words: str, **environment: str) -> str:
    module = {"hilda-cache": "hilda_cache.cli", "hilda-train": "hilda_train.cli"}[program]
    code = f"""
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "numpy", "zarr", "pyarrow"):
            raise ImportError(name)
sys.meta_path.insert(0, NoTorch())
sys.argv = [{program!r}, "doctor", *{list(words)!r}]
from {module} import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_both_programs_say_the_same_without_torch_or_numpy() -> None:
    texts = [run(program) for program in ("hilda-cache", "hilda-train")]
    lines = [[line for line in text.splitlines() if not line.startswith("threads")] for text in texts]
    assert lines[0][1] == lines[1][1]
    assert len(lines[0]) == len(lines[1])
    assert lines[0][0] == lines[0][-1] == "```"
    assert f"hilda-lidar {__version__}, Python {platform.python_version()}" in texts[0]
    for name in ("numpy", "torch", "dask", "tensorboard"):
        assert f"{name} {metadata.version(name)}" in texts[0]


def test_it_names_nobody_and_no_place() -> None:
    text = run("hilda-cache", "--json", OMP_NUM_THREADS="3", MKL_NUM_THREADS="/home/me/secret")
    for secret in (str(Path.home()), str(Path.cwd()), platform.node(), "secret", sys.prefix):
        assert secret not in text
    assert getpass.getuser() not in text.split()
    found = json.loads(text)
    assert found["threads"]["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in found["threads"]
    assert found["free_disk_gb"] > 0
    assert found["cores"]["allowed"] == len(os.sched_getaffinity(0))


def test_what_is_missing_comes_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: "" if name in ("dask", "numpy") else here(name))
    text = doctor.report(doctor.diagnose())
    assert "dask MISSING" in text
    assert "-> pip install 'hilda-lidar[extract]'" in text
    assert "-> pip install hilda-lidar\n" in text
    assert "hilda-lidar[train]" not in text


def test_extras_are_those_of_the_metadata() -> None:
    found = doctor.requirements("hilda-lidar")
    assert next(iter(found)) == "base"
    assert {"extract", "train", "s3", "viz"} <= found.keys()
    assert not {"dev", "all"} & found.keys()
    assert {"zarr", "typer"} <= set(found["base"])
    assert doctor.requirements("no-such-distribution") == {}


def test_a_gpu_is_read_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.gpus() == [] or (Path("/proc/driver/nvidia/version")).exists()
    card = tmp_path / "gpus" / "0000:01:00.0" / "information"
    card.parent.mkdir(parents=True)
    card.write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 200\n")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19\nGCC version:\n"
    )
    monkeypatch.setattr(doctor, "_NVIDIA", tmp_path)
    assert doctor.gpus() == ["driver 535.129.03", "NVIDIA H100 80GB HBM3"]
