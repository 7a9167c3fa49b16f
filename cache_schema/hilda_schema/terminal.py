"""What both command lines share: one-line errors, exit codes, and the only owner of a progress bar.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 3 done but something is left out (absences, a failed
verification), 130 and 143 interrupted by SIGINT and SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from hilda_schema.errors import HildaError

if TYPE_CHECKING:
    import typer
    from rich.progress import Progress, TaskID

EXIT_INCOMPLETE = 3


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; a BaseException so that no `except Exception` swallows it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number
        self.name = signal.Signals(signal_number).name


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted` once; a second one ends the process at once."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda number, _: os._exit(128 + number))
        raise Interrupted(number)

    before = {each: signal.signal(each, on_signal) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def say(text: str) -> None:
    """A line for people: to standard error, so that standard output stays for results."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def fail(error: HildaError) -> NoReturn:
    """Print an error on one line (and its remedy on another), then exit with its code."""
    say(f"error [{error.code}]: {error.message}")
    if error.remedy:
        say(f"  -> {error.remedy}")
    sys.exit(error.exit_code)


def run(app: typer.Typer) -> None:
    """Run a command line: a user's mistake ends in one line, never in a traceback."""
    try:
        app()
    except HildaError as error:
        fail(error)
    except Interrupted as stop:
        say(f"interrupted by {stop.name}")
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; point stdout elsewhere so that the exit is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


class Meter:
    """One progress bar on a terminal, a plain line now and then elsewhere.

    Use as a context manager and call `advance`. `describe` turns (done, total, seconds) into the text behind the bar.
    """

    PLAIN_EVERY_S = 10.0

    def __init__(self, title: str, total: int, describe: Callable[[int, int, float], str]) -> None:
        self.title, self.total, self.describe = title, total, describe
        self.done = 0
        self._began = self._spoke = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Meter:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def advance(self, by: int = 1) -> None:
        """Count `by` more units as done."""
        self.done += by
        now = time.monotonic()
        note = self.describe(self.done, self.total, now - self._began)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, note=note)
        elif now - self._spoke >= self.PLAIN_EVERY_S or self.done == self.total:
            self._spoke = now
            say(f"{self.title} {self.done}/{self.total} {note}")

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def counted(count: int, noun: str, nouns: str = "") -> str:
    """A number of things: 1 frame, 2 frames; `nouns` where an s does not do."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def human_bytes(count: float) -> str:
    """Bytes in decimal units, as disks are sold: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"


def human_seconds(seconds: float) -> str:
    """Seconds as 42 s, 3 min 10 s or 2 h 5 min."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
