"""One small YAML file for each published result or experiment; each holds only what differs from the one it extends.

    config = load_recipe("hilda")               # shipped with the package
    config = load_recipe("mine/wider.yaml")     # a file: anything with a slash or ending in .yaml

A file's first key may be `extends`, a shipped name or a path relative to the file. Its comment says which published row
it stands for and the published number; a value that nobody published is marked "ours".
"""

from __future__ import annotations

import difflib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from hilda_schema.errors import UsageError
from hilda_train.config import FitConfig, from_mapping, overlay
from hilda_train.config.strict_yaml import MAX_BYTES, parse

MAX_CHAIN = 8

__all__ = ["load_recipe", "recipe_names"]


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that are shipped, in alphabetical order."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def load_recipe(name_or_path: str | Path) -> FitConfig:
    """Read a recipe with everything that it extends.

    Args:
        name_or_path: a shipped name, or a YAML file; a run's own config.yaml is one too.

    Raises:
        UsageError: no such recipe, a circle of `extends`, or anything wrong in a file.
    """
    return _load(_find(str(name_or_path), None), ())


def _load(file: Path | Traversable, chain: tuple[str, ...]) -> FitConfig:
    where = str(file) if isinstance(file, Path) else f"recipe {file.name.removesuffix('.yaml')}"
    if where in chain or len(chain) == MAX_CHAIN:
        raise UsageError(f"recipes extend each other in a circle: {' -> '.join([*chain, where])}")
    raw = parse(_read(file, where), where)
    if raw is None:
        raw = {}
    if not isinstance(raw, dict) or "extends" not in raw:
        return from_mapping(raw, where)
    parent, changes = raw["extends"], {key: value for key, value in raw.items() if key != "extends"}
    if not isinstance(parent, str):
        raise UsageError(f"{where}: extends = {parent!r} is not a recipe's name or a path")
    return overlay(_load(_find(parent, file), (*chain, where)), changes, where)


def _find(text: str, extended_by: Path | Traversable | None) -> Path | Traversable:
    if "/" in text or "\\" in text or text.endswith((".yaml", ".yml")):
        return extended_by.parent / text if isinstance(extended_by, Path) else Path(text)
    if text not in recipe_names():
        close = difflib.get_close_matches(text, recipe_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(recipe_names())}; or give a .yaml file"
        raise UsageError(f"there is no recipe {text!r}", hint)
    return resources.files(__name__) / f"{text}.yaml"


def _read(file: Path | Traversable, where: str) -> bytes:
    try:
        with file.open("rb") as stream:
            # One byte more than the parser takes, so that a huge file is refused without being read.
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}") from None
