"""docs/conformance.md, executed in the order of the page."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


def test_the_pages_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {"folder": tmp_path}
    for block in blocks:
        exec(block, names)


def test_the_damaged_block_bites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that checks nothing fails it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    block = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[2]
    from hilda_schema.testing import damaged_cases

    class Careless:
        def __getattr__(self, name):
            return lambda *arguments: None

        def __getitem__(self, index):
            return self

    names = {"folder": tmp_path, "open_cache": lambda store: Careless(), "damaged_cases": damaged_cases}
    with pytest.raises(AssertionError, match="unknown-version was read: section 17"):
        exec(block, names)
