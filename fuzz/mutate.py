"""Changes to an input that need no fuzzing engine: of bytes, of numbers in texts, and of values in JSON."""

from __future__ import annotations

import json
import random
import re
from typing import Any

ODD = [0, -1, 1, 255, 256, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**62, 2**63, 2**64, 10**400]
ODD_VALUES: list[Any] = [
    *ODD[:-1],
    None,
    True,
    "",
    "..",
    "../x",
    "/etc/passwd",
    "\x00",
    "\ud800",
    [],
    {},
    1e308,
    0.5,
    -0.0,
]
ODD_WORDS = [str(number).encode() for number in ODD[:-1]] + [b"nan", b"inf", b"1e999", b"-0", b"1e-999", b"", b"0x1"]


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """An input like this one."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        data = chance.choice((_flip, _flip, _cut, _insert, _repeat, _splice, _number, _number, _json, _json))(
            data, others, chance
        )
    return data


def _flip(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    if not data:
        return b"\0"
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def _cut(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.choice((1, 4, 8, 64, len(data))) :]


def _insert(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice((b"\xff" * 8, bytes(8), chance.randbytes(4), b'"', b"[", b"\n", b":")) + data[at:]


def _repeat(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    piece = data[start : start + chance.choice((1, 2, 8, 32))]
    return data[:start] + piece * chance.choice((2, 3, 100)) + data[start:]


def _splice(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    other = chance.choice(others)
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


def _number(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    places = list(re.finditer(rb"-?\d+(\.\d+)?", data[:100_000]))
    if not places:
        return _flip(data, others, chance)
    place = chance.choice(places)
    return data[: place.start()] + chance.choice(ODD_WORDS) + data[place.end() :]


def _json(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One value of a JSON text, perhaps behind a byte that chooses, is another."""
    for skip in (0, 1):
        try:
            value = json.loads(data[skip:])
        except (ValueError, RecursionError):
            continue
        return data[:skip] + json.dumps(_changed(value, chance), ensure_ascii=chance.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    return _flip(data, others, chance)


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        if chance.random() < 0.1:
            return {key: each for key, each in value.items() if key != name}
        return value | {name: _changed(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        if chance.random() < 0.1:
            return value[:at] + value[at + 1 :]
        return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
    return chance.choice(ODD_VALUES)
