"""The law of arrows."""

from __future__ import annotations

import ast
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
