"""docs/cli.md is what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli_reference", REPO / "tools" / "make_cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_code(tool: ModuleType) -> None:
    made = tool.reference()
    assert "### hilda-cache extract" in made
    assert "| `--teacher, -t` |" in made
    assert (REPO / "docs" / "cli.md").read_text() == made, "run: python tools/make_cli_reference.py"
