"""What people copy from the README and the pages works: the example, the links, the command lines."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import typer

from hilda_cache.cli import app as cache_app
from hilda_schema.testing import tiny_cache
from hilda_train.cli import app as train_app

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [REPO / name for name in ("README.md", "AGENTS.md", "CHANGELOG.md", "recipes/README.md")]
    + list((REPO / "docs").rglob("*.md"))
)
COMMANDS: dict[str, Any] = {
    "hilda-cache": typer.main.get_command(cache_app),
    "hilda-train": typer.main.get_command(train_app),
}
SHELL = ("head", "jq", "less")  # what a result may be piped into
PROSE = frozenset({"with"})  # words that follow a program's name in a sentence of ours


def name_of(page: Path) -> str:
    return page.relative_to(REPO).as_posix()


def fences(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


# The example


def commented_expressions(example: str) -> Iterator[tuple[str, str]]:
    """(expression, comment) of every line that shows a value."""
    lines = example.splitlines()
    for node in ast.parse(example).body:
        if isinstance(node, ast.Expr):
            yield ast.unparse(node), lines[node.lineno - 1].partition("#")[2].strip()


def test_the_readmes_example_runs_and_its_comments_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = (text for language, text in fences(REPO / "README.md") if language == "python")
    tiny_cache(tmp_path / "cache", scenes=1, frames=4)
    monkeypatch.chdir(tmp_path)
    example = example.replace('"dinov2"', '"vit"').replace("layer=12", "layer=4")
    names: dict[str, object] = {}
    exec(example, names)
    extents = {"cameras": 3}
    shown = dict(commented_expressions(example))
    assert len(shown) >= 6
    for expression, comment in shown.items():
        value = eval(expression, names)  # noqa: S307
        if not (shape := re.match(r"\(([\w, ]+)\)( float32)?", comment)):
            continue
        assert isinstance(value, np.ndarray), expression
        assert value.dtype == np.float32 or not shape[2], expression
        symbols = shape[1].split(", ")
        assert len(symbols) == value.ndim, expression
        for symbol, extent in zip(symbols, value.shape, strict=True):
            assert extent == (int(symbol) if symbol.isdigit() else extents.setdefault(symbol, extent)), expression
    assert extents.keys() >= {"N", "P", "C", "H", "W", "D"}


# Links


def targets(page: Path) -> list[str]:
    """Relative targets of links and images."""
    found = re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", prose(page))
    found += re.findall(r"<(?:img|a)\s[^>]*(?:src|href)=\"([^\"]+)\"", prose(page))
    return [target for target in found if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    missing = []
    for target in targets(page):
        path, _, anchor = target.partition("#")
        file = page.parent / unquote(path) if path else page
        if not file.exists() or not file.resolve().is_relative_to(REPO):
            missing.append(target)
        elif anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            if anchor not in slugs:
                missing.append(target)
    assert missing == []


def test_the_readme_has_links_to_check() -> None:
    assert {"docs/cache-format.md", "docs/images/demo.png", "AGENTS.md"} <= set(targets(REPO / "README.md"))


# Command lines


def command_lines(page: Path) -> Iterator[str]:
    """Every command of ours in a code block, fenced or indented, or between backticks."""
    text = page.read_text()
    blocks = [block for language, block in fences(page) if language in ("", "sh", "bash", "console", "shell")]
    indented = re.findall(r"^(?: {4}|\t)(\S.*)$", prose(page), re.MULTILINE)
    lines = "\n".join([*blocks, *indented]).replace("\\\n", " ").splitlines()
    lines += [
        code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    ]
    for line in lines:
        if match := re.match(r"(?:\$ )?(hilda-(?:cache|train)(?: .*)?)$", line.strip()):
            yield match[1]


def refusal(line: str) -> str:
    """Why a command line would be refused, "" where it would run; nothing is run.

    "..." stands for what a reader fills in: options may then be missing, but none may be unknown.
    """
    program, *words = shlex.split(line, comments=True)
    commands = COMMANDS[program].commands
    words = [*takewhile(lambda word: word not in (">", *SHELL), words)]
    if words[-1:] == ["|"]:
        del words[-1]
    before = {word for each in COMMANDS[program].params for word in each.opts}
    words = [*dropwhile(before.__contains__, words)]
    if "|" in words:
        unknown = sorted(set(words) - {"|"} - commands.keys())
        return f"no command {unknown[0]}" if unknown else ""
    if not words:
        return ""
    name, *arguments = words
    if name not in commands:
        return f"no command {name}"
    command = commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in arguments if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known]
    if unknown:
        return f"no option {unknown[0]}"
    if not arguments or "..." in arguments:
        return ""
    try:
        command.make_context(name, arguments)
    except typer.BadParameter.__bases__[0] as error:  # click's UsageError, wherever typer keeps click
        return f"{type(error).__name__}: {error}"
    return ""


LINES = [(page, line) for page in PAGES for line in dict.fromkeys(command_lines(page))]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{name_of(page)}: {line[:60]}" for page, line in LINES])
def test_command_lines_parse(page: Path, line: str) -> None:
    assert refusal(line) == ""


def test_the_readme_has_command_lines_to_check() -> None:
    found = [line for page, line in LINES if page.name == "README.md"]
    assert {line.split()[1] for line in found if len(line.split()) > 2} >= {
        "plan",
        "extract",
        "verify",
        "fit",
        "export",
    }


@pytest.mark.parametrize(
    "line",
    [
        "hilda-cache extrakt root -d nuscenes",
        "hilda-cache --quite info cache",
        "hilda-cache --quiet infos cache | head -1",
        "hilda-cache verify --json",
        "hilda-cache show cache --frame one --out x.png",
        "hilda-cache plan root -d nuscenes -t x --lairs 1",
        "hilda-cache plan root -d nuscenes ... --lairs 1",
        "hilda-cache plan | extrakt",
        "hilda-train fit hilda --cache x",
        "hilda-train export run --out x --to",
    ],
)
def test_command_lines_that_would_be_refused_are_noticed(line: str) -> None:
    assert refusal(line)


def test_the_readmes_table_names_commands_that_are_there() -> None:
    rows = [row.split("|")[2] for row in (REPO / "README.md").read_text().splitlines() if row.startswith("| ")]
    program, named = "", []
    for code in (code for cell in rows for code in re.findall(r"`([^`]+)`", cell)):
        first, *rest = code.split()
        program = first if first in COMMANDS else program
        named.append((program, rest[0] if first in COMMANDS else first))
    assert len(named) > 8
    for program, name in named:
        assert name in COMMANDS[program].commands, f"{program} {name}"


def test_messages_name_commands_that_are_there() -> None:
    """What an error tells a user to run must be something that exists."""
    named = {}
    for root in ("cache_schema", "pipeline", "trainer", "tools"):
        for path in (REPO / root).rglob("*.py"):
            for program, name in re.findall(r"\b(hilda-(?:cache|train)) ([a-z]+)\b", path.read_text()):
                named[program, name] = name_of(path)
    assert ("hilda-cache", "repair") in named
    unknown = [(*each, file) for each, file in named.items() if each[1] not in {*COMMANDS[each[0]].commands, *PROSE}]
    assert unknown == []
