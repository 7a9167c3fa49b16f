"""YAML without its traps: a small subset, read by the rules of YAML 1.2, that cannot run code or exhaust memory.

PyYAML follows YAML 1.1, where `1e-3` is text, `no` is False, `012` is 10 and `12:30` is 750. Here a scalar is a number
if it looks like one in JSON, a truth value only as true or false, and text otherwise. Anchors, aliases, tags, merge
keys and repeated keys are errors: a config needs none of them, and a 300-byte file of aliases can stand for gigabytes.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from hilda_schema.errors import UsageError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16

# tag, pattern, first characters (PyYAML's index; "" is the empty scalar)
_SCALARS = (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?(0|[1-9][0-9]{0,18})", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own way to declare them

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = float(node.value)
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(None, None, f"{node.value} is beyond all numbers", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


class _Dumper(yaml.SafeDumper):
    # Keeps PyYAML's own resolvers beside ours: text that any YAML reader would take for a number is quoted.

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def parse(text: bytes | str, where: str) -> Any:
    """Read one YAML document.

    Args:
        text: UTF-8.
        where: file or option, for messages.

    Returns:
        Mappings, lists, text, numbers, truth values and None.

    Raises:
        UsageError: not YAML, larger or deeper than a config can be, or outside the subset; with line and column.
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{where} has {len(text)} bytes", f"a config has at most {MAX_BYTES}")
    try:
        _require_plain(text, where)
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        raise UsageError(f"{_place(where, error.problem_mark)}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{where} is not UTF-8 YAML: {str(error).splitlines()[0]}") from None


def dump(value: Any) -> str:
    """Write YAML that `parse` reads back as the same value; the same value gives the same text."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
    return text


def _require_plain(text: bytes | str, where: str) -> None:
    """Refuse what the subset leaves out while the text is still a stream of events: nothing has been built yet."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _unwanted(event, where, "anchors and aliases are not used in a config")
        if tag := getattr(event, "tag", None):
            raise _unwanted(event, where, f"the tag {tag} is not used in a config")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > MAX_DEPTH or documents > 1:
            what = f"nested deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else "a second document begins here"
            raise _unwanted(event, where, what)


def _unwanted(event: yaml.Event, where: str, what: str) -> UsageError:
    return UsageError(f"{_place(where, event.start_mark)}: {what}")


def _place(where: str, mark: Any) -> str:
    return f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
