"""Write docs/cli.md from the code: every command, argument and option of both programs.

    python tools/make_cli_reference.py

A test fails while the page is not what the code says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# Commands

Made from the code by `python tools/make_cli_reference.py`; change the code, not this page.
[command-line.md](command-line.md) has what the two programs share: output, exit codes, completion.
"""
BUILT_IN = frozenset({"--help", "--install-completion", "--show-completion"})


def reference() -> str:
    """The page."""
    from hilda_cache.cli import app as cache_app
    from hilda_train.cli import app as train_app

    sections = [HEAD]
    for app in (cache_app, train_app):
        group: Any = typer.main.get_command(app)
        sections.append(f"## {group.name}\n\n{sentence(group.help)}\n\nBefore the command:\n\n{table(group)}")
        for name, command in group.commands.items():
            sections.append(f"### {group.name} {name}\n\n{sentence(command.help)}\n\n{table(command)}".rstrip() + "\n")
    return "\n".join(sections)


def table(command: Any) -> str:
    """Arguments and options, one row each; required ones say so."""
    rows = [row(each) for each in parameters(command)]
    return "\n".join(["| | | default |", "|---|---|---|", *rows]) + "\n" if rows else ""


def parameters(command: Any) -> Iterator[Any]:
    """Those that are ours, arguments first, in the order of the code."""
    own = [each for each in command.params if not BUILT_IN & set(each.opts)]
    yield from (each for each in own if each.param_type_name == "argument")
    yield from (each for each in own if each.param_type_name == "option")


def row(parameter: Any) -> str:
    """How it is written, its help, and what it is when it is not given."""
    if parameter.param_type_name == "argument":
        words = f"{(parameter.metavar or parameter.name).upper()}{'...' if parameter.nargs == -1 else ''}"
    else:
        words = ", ".join([*parameter.opts, *parameter.secondary_opts])
    help_text = sentence(parameter.help or "").replace("|", "\\|")
    return f"| `{words}` | {help_text} | {default(parameter)} |"


def default(parameter: Any) -> str:
    """What stands in the last column: required, the default, or nothing where there is none worth saying."""
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return f"`{parameter.show_default}`"
    value = parameter.default
    if value is None or value is False or value in ((), []) or parameter.show_default is False or callable(value):
        return ""
    return f"`{value}`"


def sentence(text: str) -> str:
    """Help as one line."""
    return " ".join((text or "").split())


if __name__ == "__main__":
    PAGE.write_text(reference())
