"""A verification that is interrupted says so and changes nothing; the next one begins anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hilda_schema.testing import tiny_cache


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_verification_that_is_interrupted_ends_in_one_line(number: signal.Signals, tree: Any, tmp_path: Path) -> None:
    """Scenario 50, once it has begun to read the parts."""
    store = tiny_cache(tmp_path / "store", scenes=2, frames=4, points=50_000)
    before = tree(store)
    command = [sys.executable, "-c", "from hilda_cache.cli import main; main()", "verify", str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 120
    while not any(f"{store}/parts/" in name for name in open_files(process.pid)):
        assert process.poll() is None
        assert time.monotonic() < give_up
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.splitlines()[-1] == f"interrupted by {number.name}"
    assert "Traceback" not in said
    assert tree(store) == before
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "all as sealed" in done.stderr) == (0, True)


def open_files(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            found.append(os.fspath(link.readlink()))
        except OSError:
            continue
    return found
