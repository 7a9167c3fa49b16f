"""The table of frames, as a short-lived process reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hilda_schema.testing import tiny_cache

READ = """
import os, sys
from pathlib import Path
from hilda_schema.manifest import Manifest
from hilda_schema.table import parse_table

store = Path(sys.argv[1])
manifest = Manifest.from_bytes((store / "manifest.json").read_bytes(), "manifest.json")
before = set(os.listdir("/proc/self/task"))
table = parse_table((store / "frames.parquet").read_bytes(), manifest.frames, "frames.parquet")
print(table.num_rows, sorted(set(os.listdir("/proc/self/task")) - before))
"""


def test_reading_it_starts_no_thread(tmp_path: Path) -> None:
    """A thread of Arrow's pool that is still starting when its process ends aborts it, once in a dozen times."""
    store = tiny_cache(tmp_path / "cache")
    done = subprocess.run([sys.executable, "-c", READ, str(store)], capture_output=True, text=True, check=True)
    rows, threads = done.stdout.split(maxsplit=1)
    assert int(rows) > 0
    assert threads.strip() == "[]"
