"""What both command lines share: one-line errors, exit codes, and the only owner of a progress bar.

Exit codes (docs/command-line.md): 0 done, 1 the work failed, 2 the request was wrong, 3 done but something is left out
(absences, a failed verification), 130 and 143 interrupted by SIGINT and SIGTERM, 141 nobody reads the output any more.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from hilda_schema.errors import HildaError

if TYPE_CHECKING:
    import typer
    from rich.progress import Progress, TaskID

EXIT_INCOMPLETE = 3
EXIT_BROKEN_PIPE = 141

_shown = {"news": True, "tracebacks": False}

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


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


def plain(text: str) -> str:
    """Text as a terminal may get it: a name from a stranger's store must not move the cursor or change colours."""
    return text.translate(_ESCAPED)


def show(*, news: bool, tracebacks: bool) -> None:
    """What this process shows beside results: `say` and progress, and where in the code an error arose."""
    _shown.update(news=news, tracebacks=tracebacks)


def say(text: str) -> None:
    """News for people: to standard error, so that standard output stays for results. Silent under --quiet."""
    if _shown["news"]:
        warn(text)


def warn(text: str) -> None:
    """What people must see even under --quiet: what went wrong, what is left out, how to go on."""
    print(plain(text), file=sys.stderr, flush=True)  # noqa: T201


def fail(error: HildaError) -> NoReturn:
    """Print an error on one line (and its remedy on another), then exit with its code."""
    if _shown["tracebacks"]:
        for line in "".join(traceback.format_exception(error)).splitlines():
            warn(line)
    warn(f"error [{error.code}]: {error.message}")
    if error.remedy:
        warn(f"  -> {error.remedy}")
    sys.exit(error.exit_code)


def run(app: typer.Typer) -> None:
    """Run a command line: a user's mistake ends in one line, never in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names need not fit the locale: UTF-8 in any, as later Pythons have it
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        with interruptible():
            try:
                app()
            finally:
                sys.stdout.flush()
    except SystemExit as stop:
        if stop.code == 1 and _nobody_reads():  # which click has noticed, and calls a failure
            sys.exit(EXIT_BROKEN_PIPE)
        raise
    except HildaError as error:
        fail(error)
    except Interrupted as stop:
        warn(f"interrupted by {stop.name}")
        sys.exit(stop.exit_code)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        _drop_output()
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:
            raise
        _drop_output()
        fail(HildaError(f"standard output cannot be written: {error.strerror}", "free some space where it goes"))


def _drop_output() -> None:
    """Point standard output elsewhere, so that what is left in its buffer does not spoil the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


class Meter:
    """One progress bar on a terminal, a plain line now and then elsewhere, nothing under --quiet.

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
        if not _shown["news"]:
            return self
        if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
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
