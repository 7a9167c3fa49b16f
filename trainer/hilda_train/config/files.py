"""Small YAML files by name where they are shipped with the package, by path where they are somebody's own."""

from __future__ import annotations

import difflib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from hilda_schema.errors import UsageError
from hilda_train.config.strict_yaml import MAX_BYTES, parse


def shipped_names(package: str) -> tuple[str, ...]:
    """Names of a package's files, in alphabetical order."""
    files = resources.files(package).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def find_file(text: str, package: str, kind: str, named_by: Path | Traversable | None = None) -> Path | Traversable:
    """A shipped file by name; or a path, anything with a slash or ending in .yaml.

    Args:
        text: what was asked for.
        package: that ships the files.
        kind: what the files are, for messages, e.g. "recipe".
        named_by: the file that names this one; a path is relative to it.

    Raises:
        UsageError: no file of that name is shipped.
    """
    if "/" in text or "\\" in text or text.endswith((".yaml", ".yml")):
        return named_by.parent / text if isinstance(named_by, Path) else Path(text)
    names = shipped_names(package)
    if text not in names:
        close = difflib.get_close_matches(text, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}; or give a .yaml file"
        raise UsageError(f"there is no {kind} {text!r}", hint)
    return resources.files(package) / f"{text}.yaml"


def described(file: Path | Traversable, kind: str) -> str:
    """What messages call a file: its path, or the name of a shipped one."""
    return str(file) if isinstance(file, Path) else f"{kind} {file.name.removesuffix('.yaml')}"


def read_file(file: Path | Traversable, where: str) -> Any:
    """What a YAML file says.

    Raises:
        UsageError: it cannot be read, or is not of the subset that `strict_yaml` takes.
    """
    try:
        with file.open("rb") as stream:
            # One byte more than the parser takes, so that a huge file is refused without being read.
            return parse(stream.read(MAX_BYTES + 1), where)
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}") from None
