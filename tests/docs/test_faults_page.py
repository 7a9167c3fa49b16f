"""docs/faults.md: every scenario and threat has a row, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\| T?\d+ \|", line)
]


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((REPO / "tests" / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def named(cell: str) -> list[tuple[str, str]]:
    """Files and tests that a cell names; `::name` is in the file named before it."""
    found, path = [], ""
    for text in re.findall(r"`([^`]*)`", cell):
        file, _, name = text.partition("::")
        path = file or path
        found.append((path, name))
    return found


def test_every_number_has_a_row_in_order() -> None:
    assert [row[0] for row in ROWS] == [*map(str, range(1, 81)), *(f"T{number}" for number in range(1, 20))]
    assert all(len(row) == 5 for row in ROWS)


def test_every_test_named_is_there() -> None:
    missing = [
        f"{row[0]}: {path}::{name}"
        for row in ROWS
        for path, name in named(row[3])
        if not (REPO / "tests" / path).is_file() or name not in names_in(path)
    ]
    assert missing == []


def test_a_row_without_a_test_says_that_it_is_not_covered() -> None:
    for number, _, happens, tests, when in ROWS:
        assert named(tests) or "Not covered" in happens, number
        assert when or not named(tests), number


def test_every_test_of_this_folder_is_on_the_page() -> None:
    """Nobody adds a fault and forgets to say so."""
    on_page = {(path, name) for row in ROWS for path, name in named(row[3])} | set(
        named(PAGE.split("## Extraction")[0])
    )
    for folder in ("faults", "security"):
        for file in sorted((REPO / "tests" / folder).glob("test_*.py")):
            path = f"{folder}/{file.name}"
            tests = {name for name in names_in(path) if name.startswith("test_")}
            absent = {name for name in tests if (path, name) not in on_page}
            assert absent <= {"test_a_frame_reads_as_written_or_not_at_all_for_long"}, (path, absent)
