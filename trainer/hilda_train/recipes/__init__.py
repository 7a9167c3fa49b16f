"""One small YAML file for each published result or experiment; each holds only what differs from the one it extends.

    config = load_recipe("hilda")               # shipped with the package
    config = load_recipe("mine/wider.yaml")     # a file: anything with a slash or ending in .yaml

A file's first key may be `extends`, a shipped name or a path relative to the file. Its comment says which published row
it stands for and the published number; a value that nobody published is marked "ours".
"""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path

from hilda_schema.errors import UsageError
from hilda_train.config import FitConfig, from_mapping, overlay
from hilda_train.config.files import described, find_file, read_file, shipped_names

MAX_CHAIN = 8

__all__ = ["load_recipe", "recipe_names"]


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that are shipped, in alphabetical order."""
    return shipped_names(__name__)


def load_recipe(name_or_path: str | Path) -> FitConfig:
    """Read a recipe with everything that it extends.

    Args:
        name_or_path: a shipped name, or a YAML file; a run's own config.yaml is one too.

    Raises:
        UsageError: no such recipe, a circle of `extends`, or anything wrong in a file.
    """
    return _load(find_file(str(name_or_path), __name__, "recipe"), ())


def _load(file: Path | Traversable, chain: tuple[str, ...]) -> FitConfig:
    where = described(file, "recipe")
    if where in chain or len(chain) == MAX_CHAIN:
        raise UsageError(f"recipes extend each other in a circle: {' -> '.join([*chain, where])}")
    raw = read_file(file, where)
    if raw is None:
        raw = {}
    if not isinstance(raw, dict) or "extends" not in raw:
        return from_mapping(raw, where)
    parent, changes = raw["extends"], {key: value for key, value in raw.items() if key != "extends"}
    if not isinstance(parent, str):
        raise UsageError(f"{where}: extends = {parent!r} is not a recipe's name or a path")
    return overlay(_load(find_file(parent, __name__, "recipe", file), (*chain, where)), changes, where)
