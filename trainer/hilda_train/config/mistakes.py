"""What is wrong with a config, in words: one line per key, and the key that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hilda_schema.errors import UsageError

# What pydantic calls types, and what a person who writes YAML calls them.
_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid tuple": "a list",
    "a valid array": "a list",
    "a valid dictionary": "a section of keys",
    "an object": "a section of keys",
}


def usage_error(error: ValidationError, raw: Any, model: type[BaseModel], where: str) -> UsageError:
    """Turn pydantic's account into ours.

    Args:
        error: what the validation of `raw` raised.
        raw: the mapping that was validated.
        model: the root of the tree.
        where: file or option that the mapping came from.

    Returns:
        One line where one thing is wrong, otherwise a line for each.
    """
    problems = []
    for path, detail in _without_echoes([(_path(each, raw), each) for each in error.errors(include_url=False)]):
        key = dotted(path)
        if detail["type"] == "extra_forbidden":
            problems.append((f"there is no key {key!r}", _suggest(key, model)))
        else:
            problems.append((_line(key, detail), ""))
    if len(problems) == 1:
        line, remedy = problems[0]
        return UsageError(f"{where}: {line}", remedy)
    lines = [f"{line}; {remedy}" if remedy else line for line, remedy in problems]
    return UsageError("\n  ".join([f"{where}: {len(lines)} keys are wrong", *lines]))


def dotted(path: Sequence[str | int]) -> str:
    """("targets", 0, "layer") -> "targets[0].layer"."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a tree of sections, over all variants."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from known_keys(section, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _path(detail: ErrorDetails, raw: Any) -> tuple[str | int, ...]:
    """The location without the names of variants, which pydantic puts in and no user wrote."""
    path: list[str | int] = []
    for index, step in enumerate(detail["loc"]):
        written = (isinstance(raw, dict) and step in raw) or (
            isinstance(raw, list) and isinstance(step, int) and step < len(raw)
        )
        missing = detail["type"] == "missing" and index == len(detail["loc"]) - 1
        if written:
            raw = raw[step]
        if written or missing:
            path.append(step)
    return tuple(path)


def _without_echoes(
    found: list[tuple[tuple[str | int, ...], ErrorDetails]],
) -> list[tuple[tuple[str | int, ...], ErrorDetails]]:
    """Drop "is not 'auto'" where something inside a list that stands there instead is wrong, and repeats."""
    kept: dict[tuple[str | int, ...], ErrorDetails] = {}
    for path, detail in found:
        deeper = any(len(other) > len(path) and other[: len(path)] == path for other, _ in found)
        if not deeper and path not in kept:
            kept[path] = detail
    return list(kept.items())


def _line(key: str, detail: ErrorDetails) -> str:
    if detail["type"] == "missing":
        return f"{key} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "union_tag_invalid":
        context = detail.get("ctx", {})
        discriminator = str(context.get("discriminator", "")).strip("'")
        return f"{key}.{discriminator} = {context.get('tag')!r} should be one of {context.get('expected_tags')}"
    if not key:
        return message
    if detail["type"] == "value_error" and not message.startswith("is "):
        return message  # a check of several keys names them itself; one of a single value says what "is" wrong with it
    message = message.removeprefix("Input ")
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return f"{key} = {_shown(detail['input'])} {message}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggest(key: str, model: type[BaseModel]) -> str:
    keys = list(dict.fromkeys(known_keys(model)))
    parent, _, leaf = key.rpartition(".")
    if key in keys:
        return f"another variant of {parent} has it"
    same_leaf = [each for each in keys if each.rpartition(".")[2] == leaf]
    if len(same_leaf) == 1:
        return f"did you mean {same_leaf[0]}?"
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.7)
    if close:
        return f"did you mean {close[0]}?"
    siblings = [each for each in keys if each.rpartition(".")[0] == parent]
    return f"{parent or 'a config'} has {', '.join(each.rpartition('.')[2] for each in siblings)}" if siblings else ""
