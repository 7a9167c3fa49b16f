"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder with real recorded drives (`data/`) and weights (`weights/`); skips where it is absent."""
    folder = Path(os.environ.get("HILDA_SAMPLE_DATA", REPO.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real sample data at {folder}: set HILDA_SAMPLE_DATA")
    return folder
