"""What is installed is what is in the tree: the wheel, the source archive, the programs, the version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from hilda_schema import __version__

REPO = Path(__file__).resolve().parents[2]
ROOTS = {"hilda_schema": "cache_schema", "hilda_cache": "pipeline", "hilda_train": "trainer"}
EXTRAS = tuple(tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"])

pytest.importorskip("hatchling")


def build(source: Path, kind: str, out: Path) -> Path:
    """Build as pip does, by the back end that pyproject.toml names, but without a fresh environment for it."""
    code = f"import hatchling.build as back; print(back.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPO, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def in_tree() -> set[str]:
    """Every file of the three packages."""
    found = set()
    for package, root in ROOTS.items():
        for path in (REPO / root / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(path.relative_to(REPO / root).as_posix())
    return found


def test_the_wheel_has_three_packages_and_no_other_top_level_name(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names} == {*ROOTS, f"hilda_lidar-{__version__}.dist-info"}


def test_the_wheel_has_every_file_of_the_packages(names: set[str]) -> None:
    assert {name for name in names if ".dist-info/" not in name} == in_tree()
    assert {f"{package}/py.typed" for package in ROOTS} <= names
    assert "hilda_train/recipes/hilda.yaml" in names
    assert "hilda_train/evaluate/classes/nuscenes16.yaml" in names
    assert "hilda_train/evaluate/protocols/scalr.yaml" in names
    assert any(name.startswith("hilda_cache/teachers/demo/") and name.endswith(".safetensors") for name in names)


def test_the_wheel_has_the_licence_and_both_programs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        folder = f"hilda_lidar-{__version__}.dist-info"
        assert f"{folder}/licenses/LICENSE" in file.namelist()
        programs = file.read(f"{folder}/entry_points.txt").decode()
        metadata = file.read(f"{folder}/METADATA").decode()
    assert "hilda-cache = hilda_cache.cli:main" in programs
    assert "hilda-train = hilda_train.cli:main" in programs
    assert f"\nVersion: {__version__}\n" in metadata
    stated = set(re.findall(r"^Provides-Extra: (.*)$", metadata, re.MULTILINE))
    assert stated == set(EXTRAS)


def test_the_source_archive_builds_the_same_wheel(names: set[str], tmp_path: Path) -> None:
    archive = build(REPO, "sdist", tmp_path)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    source = tmp_path / f"hilda_lidar-{__version__}"
    assert not {path.name for path in source.iterdir()} & {"demo-out", ".venv", "shared"}
    assert {"docs", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"} <= {
        path.name for path in source.iterdir()
    }
    (tmp_path / "again").mkdir()
    with zipfile.ZipFile(build(source, "wheel", tmp_path / "again")) as file:
        assert set(file.namelist()) == names


def test_the_wheel_runs_where_no_source_is(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own; the dependencies are those of this one, which its .pth files do not bring along."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    def run(*command: str) -> str:
        how = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment, "timeout": 120}
        done = subprocess.run([str(tmp_path / "venv" / "bin" / command[0]), *command[1:]], **how)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for program in ("hilda-cache", "hilda-train"):
        assert "Usage" in run(program, "--help")
    assert "scalr" in run("hilda-train", "recipes")
    places = run(
        "python", "-c", "import hilda_schema, hilda_cache, hilda_train as t; print(hilda_schema.__file__, t.__file__)"
    )
    assert all(Path(place).is_relative_to(site) for place in places.split())


def test_the_version_is_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", __version__)
    files = [path for root in ROOTS.values() for path in (REPO / root).rglob("*.py")] + [REPO / "pyproject.toml"]
    holding = [path.relative_to(REPO).as_posix() for path in files if f'"{__version__}"' in path.read_text()]
    assert holding == ["cache_schema/hilda_schema/__init__.py"]
    assert f"## {__version__}" in (text := (REPO / "CHANGELOG.md").read_text()) or "## Unreleased" in text


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_resolves(extra: str, wheel: Path) -> None:
    """Against the package index; torch as constraints.txt pins it."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
    pip += ["-c", str(REPO / "constraints.txt"), f"{wheel}[{extra}]"]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
