"""The config as text: read, changed key by key, written, compared, hashed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from hilda_schema.errors import UsageError
from hilda_schema.manifest import canonical_json, sha256_hex
from hilda_train.config.fit import FitConfig
from hilda_train.config.mistakes import usage_error
from hilda_train.config.section import FREE, Section
from hilda_train.config.strict_yaml import dump, parse

VARIANT_KEYS = ("arch", "kind")
S = TypeVar("S", bound=Section)


def from_mapping(raw: Any, where: str) -> FitConfig:
    """Check a mapping and make a config of it.

    Args:
        raw: mappings, lists and scalars, as `strict_yaml.parse` gives them; what is left out is the default.
        where: file or option, for messages.

    Raises:
        UsageError: an unknown key, a value of the wrong type, keys that contradict each other; one line for each.
    """
    return validated(FitConfig, raw, where, "train: {max_steps: 100}")


def validated(model: type[S], raw: Any, where: str, example: str) -> S:
    """Check a mapping and make a section of it.

    Args:
        model: which section.
        raw: as `strict_yaml.parse` gives it.
        where: file or option, for messages.
        example: of what to write, for messages.

    Raises:
        UsageError: as `from_mapping`.
    """
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where} is not a mapping of keys to values", f"write e.g. {example}")
    try:
        # By way of JSON: there, and only there, pydantic's strict mode takes a list for a tuple.
        return model.model_validate_json(json.dumps(raw, allow_nan=False))
    except ValidationError as error:
        raise usage_error(error, raw, model, where) from None


def overlay(config: FitConfig, changes: Any, where: str) -> FitConfig:
    """Change what a mapping names and keep the rest.

    A section that is switched to another variant (`kind`, `arch`) starts from that variant's defaults.

    Raises:
        UsageError: as `from_mapping`.
    """
    if not isinstance(changes, Mapping):
        raise UsageError(f"{where} is not a mapping of keys to values", "write e.g. train: {max_steps: 100}")
    return from_mapping(_merged(config.model_dump(mode="json"), changes), where)


def apply_set(config: FitConfig, assignments: Sequence[str]) -> FitConfig:
    """Apply KEY=VALUE texts, e.g. "train.max_steps=4" or "student.levels=[block8]"; values are YAML.

    Raises:
        UsageError: not of that form, or as `from_mapping`.
    """
    return from_mapping(assigned(config, assignments), "--set") if assignments else config


def assigned(section: Section, assignments: Sequence[str]) -> Any:
    """A section as plain values, with KEY=VALUE texts applied; not yet checked.

    Raises:
        UsageError: a text is not of that form.
    """
    raw = section.model_dump(mode="json")
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text!r} is not KEY=VALUE", "write e.g. --set train.max_steps=4")
        nested: Any = parse(value, f"--set {key}")
        for step in reversed(key.strip().split(".")):
            nested = {step: nested}
        raw = _merged(raw, nested)
    return raw


def dump_effective(config: FitConfig) -> str:
    """The whole tree as YAML, defaults included; the same config gives the same text, and it reads back as itself."""
    return dump(config.model_dump(mode="json"))


def digest(config: FitConfig) -> str:
    """sha256 over everything that changes what is computed; two runs with the same one are the same run."""
    return sha256_hex(canonical_json(dict(_leaves(config))))


def differences(before: FitConfig, after: FitConfig) -> list[str]:
    """Keys that change what is computed and that differ: "optim.lr: 0.002 -> 0.001"."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    keys = [*old, *(key for key in new if key not in old)]
    return [f"{key}: {_word(old, key)} -> {_word(new, key)}" for key in keys if old.get(key) != new.get(key)]


def _merged(base: Any, changes: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    if any(key in changes and changes[key] != base.get(key) for key in VARIANT_KEYS if key in base):
        return dict(changes)
    return {**base, **{key: _merged(base.get(key), value) for key, value in changes.items()}}


def _leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values, without the fields that are free."""
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        if field.json_schema_extra == FREE:
            continue
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, plain[name]


def _word(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "absent"
