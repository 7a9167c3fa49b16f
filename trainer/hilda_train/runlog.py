"""A run's curves: one JSON object a line, and the same numbers for TensorBoard. Losing them never stops a run.

    {"step": 20, "loss": 0.91, "point": 0.88, "lr": 0.002, "seconds": 0.31}

A line is written with one call and is either there or not. When a run is resumed, lines after the step it goes on from
are cut off, so that an interrupted run and an uninterrupted one end with the same losses at the same steps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAME = "log.jsonl"
BOARD = "tensorboard"
MAX_LINE_BYTES = 2**20

Number = float | int | str | bool | None


class RunLog:
    """The log of one run; only the first process of a run has one.

    Args:
        folder: of the run.
        step: the step that the run goes on from; 0 for a new run. Lines of later steps are cut off.
        warn: told once when the log can no longer be written, and at the end how much is missing.
        tensorboard: also write event files, under `tensorboard/`.
    """

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None], tensorboard: bool = True) -> None:
        self.path = folder / NAME
        self._warn = warn
        self._warned = False
        self._lost = 0
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._descriptor, _end_of(self.path, step))
        except OSError as error:
            self._complain(error)
        self._board = _Board(folder / BOARD, step, warn) if tensorboard else None

    def write(self, step: int, values: Mapping[str, Number]) -> None:
        """Add a line; numbers become TensorBoard scalars of the same names.

        Args:
            step: steps done.
            values: by name; infinite ones and NaN are written as text, which JSON has no number for.
        """
        plain = {name: _plain(value) for name, value in values.items()}
        self._append(json.dumps({"step": step, **plain}, allow_nan=False).encode() + b"\n")
        if self._board is not None:
            self._board.write(step, values)

    def sync(self) -> None:
        """Flush to the disk; call it before a checkpoint, so that no checkpoint is newer than its log."""
        try:
            if self._descriptor is not None:
                os.fsync(self._descriptor)
        except OSError as error:
            self._complain(error)
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flush, close, and say how many lines are missing."""
        self.sync()
        if self._board is not None:
            self._board.close()
        if self._descriptor is not None:
            with suppress(OSError):  # what a disk could not take has been told
                os.close(self._descriptor)
            self._descriptor = None
        if self._lost:
            self._warn(f"{self._lost} lines of {self.path} could not be written")

    def _append(self, line: bytes) -> None:
        if self._descriptor is None:
            self._lost += 1
            return
        try:
            end = os.lseek(self._descriptor, 0, os.SEEK_END)
            try:
                rest = memoryview(line)
                while rest:  # a full disk may take a part; the next write says why
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                os.ftruncate(self._descriptor, end)
                raise
        except OSError as error:
            self._lost += 1
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._warned:
            self._warn(f"{self.path} cannot be written ({error.strerror}); training goes on without it")
        self._warned = True


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, whole ones only; a line that is being written is left out."""
    return [line for line, _ in _lines(path)]


def _end_of(path: Path, step: int) -> int:
    """Bytes of the lines up to a step; what follows is of a future that is computed again, or torn."""
    end = 0
    for line, after in _lines(path):
        if line["step"] > step:
            break
        end = after
    return end


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Whole lines and the byte after each, up to the first that is not one."""
    end = 0
    with path.open("rb") as stream:
        while raw := stream.readline(MAX_LINE_BYTES):
            try:
                line = json.loads(raw)
            except ValueError:
                return
            if not (raw.endswith(b"\n") and isinstance(line, dict) and isinstance(line.get("step"), int)):
                return
            end += len(raw)
            yield line, end


def _plain(value: Number) -> Number:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class _Board:
    """TensorBoard's event files, given up with one warning when they fail."""

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._writer: Any = None
        with self._giving_up():
            from torch.utils.tensorboard import SummaryWriter

            # Purging tells the viewer to forget what an interrupted run drew beyond the step it is resumed from.
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, Number]) -> None:
        with self._giving_up():
            for name, value in values.items():
                if self._writer is not None and isinstance(value, float | int):
                    self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        with self._giving_up():
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        with self._giving_up():
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a viewer's library does, the run goes on
            self._writer = None
            self._warn(f"TensorBoard files cannot be written ({error}); training goes on without them")
