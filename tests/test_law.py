"""The law of arrows, and what a command line may load before it is asked to do anything."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
ROOTS = {
    "hilda_schema": REPO / "cache_schema" / "hilda_schema",
    "hilda_cache": REPO / "pipeline" / "hilda_cache",
    "hilda_train": REPO / "trainer" / "hilda_train",
}
FORBIDDEN = {
    "hilda_schema": {"hilda_cache", "hilda_train", "torch", "transformers", "dask", "distributed", "PIL", "matplotlib"},
    "hilda_cache": {"hilda_train", "torchvision", "nuscenes", "av2", "pandas", "cv2"},
    "hilda_train": {"hilda_cache", "torchvision", "PIL", "transformers", "simplejpeg", "cv2", "dask", "distributed"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of every import in a file, at whatever depth it stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_against_the_law(package: str) -> None:
    files = list(ROOTS[package].rglob("*.py"))
    assert files
    broken = {str(path.relative_to(REPO)): sorted(imported(path) & FORBIDDEN[package]) for path in files}
    assert {path: names for path, names in broken.items() if names} == {}


def test_source_roots_are_not_packages() -> None:
    assert not [root for root in ("pipeline", "trainer", "cache_schema") if (REPO / root / "__init__.py").exists()]


HEAVY = ("torch", "dask", "distributed", "zarr", "transformers", "numpy", "pyarrow", "pydantic")


@pytest.mark.parametrize("module", ["hilda_cache.cli", "hilda_train.cli"])
def test_help_loads_nothing_heavy(module: str) -> None:
    code = f"""
import sys
sys.argv = ["hilda", "--help"]
from {module} import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
print("loaded:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert "Usage" in done.stdout


def test_doctor_starts_without_torch() -> None:
    code = """
import sys
sys.argv = ["hilda-cache", "doctor"]
from hilda_cache.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print("torch" in sys.modules, "zarr" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"
    assert "hilda-lidar" in done.stdout
