"""Words and tables for people: options as a command line has them, rows that fit a terminal."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection, Sequence

from hilda_schema.terminal import counted

MAX_CELL = 64
MAX_ROWS = 12
MIN_CELL = 10
UNBOUNDED = 10**6  # columns, of what is no terminal


def option_words(**options: str | Sequence[str] | None) -> str:
    """Options as on a command line, those without a value left out: `--scenes a,b --frames 0:2`."""
    words = []
    for name, given in options.items():
        values = [given] if isinstance(given, str) else given or ()
        words += [f"--{name} {shlex.quote(value)}" for value in values if value]
    return " ".join(words)


def table_text(header: Sequence[str], rows: Sequence[Sequence[object]], max_rows: int = MAX_ROWS) -> str:
    """A table of differences for an error message, one line a row, long cells and long tables cut."""
    lines = [list(header), *([_short(str(cell)) for cell in row] for row in rows[:max_rows])]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    text = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    more = [f"  ... and {len(rows) - max_rows} more"] if len(rows) > max_rows else []
    return "\n".join(line.rstrip() for line in [*text, *more])


def _plain(text: str) -> str:
    """A stranger's words on one line, which no character of them moves."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _short(text: str) -> str:
    plain = _plain(text)
    return plain if len(plain) <= MAX_CELL else plain[: MAX_CELL - 3] + "..."


def fitted_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    flexible: Collection[str],
    droppable: Sequence[str],
    width: int | None = None,
) -> str:
    """A table as wide as the terminal.

    Args:
        header: names of the columns.
        rows: their cells.
        flexible: columns whose cells may be cut, down to ten characters.
        droppable: columns that are left out, the first one first, where cutting is not enough.
        width: of the terminal; None asks it, and a file or pipe gets all.
    """
    width = width or shutil.get_terminal_size((UNBOUNDED, 0)).columns
    columns = {name: [name, *(_plain(row[k]) for row in rows)] for k, name in enumerate(header)}

    def widths(least: int) -> dict[str, int]:
        natural = {name: max(map(len, cells)) for name, cells in columns.items()}
        return {name: min(most, least) if name in flexible else most for name, most in natural.items()}

    dropped = [name for name in droppable if _total(widths(MIN_CELL)) > width and columns.pop(name)]
    found = widths(max(width, MIN_CELL))
    while _total(found) > width and (wide := [name for name in found if name in flexible and found[name] > MIN_CELL]):
        found[max(wide, key=lambda name: found[name])] -= 1
    lines = [
        "  ".join(_cut(columns[name][k], most).ljust(most) for name, most in found.items()).rstrip()
        for k in range(len(rows) + 1)
    ]
    return "\n".join([*lines, *([f"({counted(len(dropped), 'column')} left out; --json has all)"] if dropped else [])])


def _total(widths: dict[str, int]) -> int:
    return sum(widths.values()) + 2 * (len(widths) - 1)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
