"""Shell completion from what there is: fixed words, packaged files, and what the caches named on the line hold.

A shell waits for every answer, so that nothing heavy is imported: a store's manifest is read as plain JSON, unchecked,
since a wrong suggestion harms nobody. Only folders are looked at; completion never reaches for a network.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 2**26  # a larger one would keep the shell waiting

Manifest = dict[str, Any]
Pick = Callable[[Manifest], Iterable[str]]
Completer = Callable[[typer.Context, str], list[str]]


def words(known: Callable[[], Iterable[str]] | Iterable[str]) -> Completer:
    """Complete with fixed words, or with those that a function gives."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        return _matching(known() if callable(known) else known, incomplete)

    return complete


def of_store(pick: Pick, *, listed: bool = False) -> Completer:
    """Complete with what the caches named earlier on the command line hold.

    Args:
        pick: manifest, as JSON -> words.
        listed: whether the option takes NAME[,NAME...].
    """

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        head, comma, last = incomplete.rpartition(",") if listed else ("", "", incomplete)
        taken = set(head.split(","))
        found: dict[str, None] = {}
        for manifest in named_manifests():
            with suppress(KeyError, TypeError):  # a manifest of another shape
                found |= dict.fromkeys(map(str, pick(manifest)))
        return [head + comma + word for word in _matching(found, last) if word not in taken]

    return complete


def folders(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete with folders, as caches and runs are; a URL is left as it is."""
    base, _, stem = incomplete.rpartition("/")
    parent = Path(f"{base}/" if "/" in incomplete else ".").expanduser()
    prefix = f"{base}/" if "/" in incomplete else ""
    try:
        names = sorted(path.name for path in parent.iterdir() if path.is_dir())
    except OSError:
        return []
    return [f"{prefix}{name}" for name in _matching(names, stem) if stem.startswith(".") or not name.startswith(".")]


def packaged(package_file: str, folder: str) -> Callable[[], Iterator[str]]:
    """Names of the YAML files that lie in a folder beside a module.

    Args:
        package_file: the module's `__file__`.
        folder: relative to it.
    """

    def names() -> Iterator[str]:
        return (path.stem for path in sorted((Path(package_file).parent / folder).glob("*.yaml")))

    return names


def named_manifests() -> Iterator[Manifest]:
    """Manifests of the stores on the command line that can be read at once."""
    for word in _typed():
        path = Path(word.rpartition("=")[2]).expanduser() / MANIFEST
        try:
            if path.is_file() and path.stat().st_size <= MANIFEST_LIMIT:
                found = json.loads(path.read_bytes())
                if isinstance(found, dict):
                    yield found
        except (OSError, ValueError, RecursionError):
            continue


def _typed() -> list[str]:
    """The words of the line: a parser gives up at the option whose value is being typed, before it sees arguments."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    try:
        return shlex.split(line)
    except ValueError:  # a quote is still open
        return line.split()


def _matching(known: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in known if word.startswith(incomplete)]


def _layers(manifest: Manifest) -> Iterator[tuple[str, str]]:
    return ((each["name"], layer["name"]) for each in manifest["recipe"]["teachers"] for layer in each["layers"])


teachers_of_store = of_store(lambda manifest: [each["name"] for each in manifest["recipe"]["teachers"]])
layer_list_of_store = of_store(lambda manifest: [layer for _, layer in _layers(manifest)], listed=True)
targets_of_store = of_store(lambda manifest: ["/".join(each) for each in _layers(manifest)])
camera_list_of_store = of_store(lambda manifest: manifest["recipe"]["dataset"]["cameras"], listed=True)
scenes_of_store = of_store(lambda manifest: sorted({part["scene"] for part in manifest["parts"]}))
scene_list_of_store = of_store(lambda manifest: sorted({part["scene"] for part in manifest["parts"]}), listed=True)
teacher_list_of_store = of_store(
    lambda manifest: [each["name"] for each in manifest["recipe"]["teachers"]], listed=True
)
