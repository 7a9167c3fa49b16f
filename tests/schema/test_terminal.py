"""What both command lines share: words for sizes and times, signals, one-line errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from hilda_schema.terminal import Interrupted, human_bytes, human_seconds, interruptible


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_340_000_000, "2.3 GB"), (9.7e12, "9.7 TB")]
)
def test_bytes_are_decimal(count: float, words: str) -> None:
    assert human_bytes(count) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (99, "99 s"), (190, "3 min 10 s"), (7500, "2 h 5 min")])
def test_seconds_are_words(seconds: float, words: str) -> None:
    assert human_seconds(seconds) == words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_become_interrupted_and_handlers_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop, interruptible():
        os.kill(os.getpid(), number)
    assert stop.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = """
import os, signal
from hilda_schema.terminal import interruptible, Interrupted
try:
    with interruptible():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Interrupted:
            os.kill(os.getpid(), signal.SIGINT)   # cleaning up: the user insists
            print("still here", flush=True)
except Interrupted:
    print("handled", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stdout == ""


def test_errors_are_lines_not_tracebacks() -> None:
    code = """
import typer
from hilda_schema.errors import DriveError
from hilda_schema.terminal import run
app = typer.Typer()
@app.command()
def go() -> None:
    raise DriveError("a.bin: 7 bytes too short (frame k/s/1)", "copy the file again")
run(app)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error [drive.format]: a.bin: 7 bytes too short (frame k/s/1)",
        "  -> copy the file again",
    ]
