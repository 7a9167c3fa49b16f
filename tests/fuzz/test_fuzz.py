"""The fuzzing harnesses, with a seeded mutator and few inputs; and that their guard notices what it watches for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"


def test_no_parser_breaks_its_promise(tmp_path: Path) -> None:
    """Only HildaErrors, nothing opened elsewhere, bounded memory and time: docs/faults.md has the long runs."""
    command = [sys.executable, str(FUZZ / "run.py"), "--plain", "--runs", "40", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    assert len(lines) >= 20
    for line in lines:
        assert re.fullmatch(r"\w+: 40 inputs, \d+ accepted, \d+ s", line), line


BREAK = """
import sys
sys.path.insert(0, {fuzz!r})
from pathlib import Path
import guard
guard.SECONDS = 1
import os, pickle, socket, subprocess, time
from hilda_schema.errors import DriveError
folder = Path({folder!r})
(folder / "own").write_bytes(b"x")
watch = guard.Guard(folder)

def refuses(data):
    raise DriveError("no")

assert watch.run(lambda data: (folder / "own").read_bytes(), b"")
assert not watch.run(refuses, b"")
watch.limit_memory()
try:
    watch.run(lambda data: {action}, b"")
except BaseException as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("action", "raised"),
    [
        ("open('/etc/hostname').read()", "Broken"),
        ("(folder / '..' / 'x').write_bytes(data)", "Broken"),
        ("os.system('true')", "Broken"),
        ("subprocess.run(['true'])", "Broken"),
        ("socket.create_connection(('127.0.0.1', 9))", "Broken"),
        ("pickle.loads(pickle.dumps(os.system))('true')", "Broken"),
        ("time.sleep(5)", "Broken"),
        ("bytearray(2**31)", "MemoryError"),
        ("[][0]", "IndexError"),
    ],
)
def test_the_guard_notices(tmp_path: Path, action: str, raised: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    code = BREAK.format(fuzz=str(FUZZ), folder=str(folder), action=action)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == raised, done.stderr
