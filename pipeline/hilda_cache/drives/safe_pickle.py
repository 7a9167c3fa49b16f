"""Pickles read as data: a pickle is a program, and not one step of it is run here.

Python's own unpickler imports and calls what the file names, and even with a list of allowed names a few bytes can
make it allocate gigabytes or recurse until the interpreter dies. This one walks the instructions with the standard
library's `pickletools` and writes down what would have been called (`Call`), so that a caller can pick arrays out of
the record. Names that the caller does not list are an error, as is every instruction that plain tables do not need.
"""

from __future__ import annotations

import pickletools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilda_cache.drives.files import read_bytes
from hilda_schema.errors import DriveError

MAX_PICKLE_BYTES = 128 << 20  # once decompressed; a PandaSet sweep has 8 MiB
MAX_STEPS = 20_000  # instructions; a table of six columns has 300, whatever its length
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib's way of asking for a gzip header and its checksum
_REMEDY = "do not trust this file; download the dataset again from its publisher"
_MARK = object()


@dataclass(frozen=True, slots=True)
class Name:
    """A listed global that the pickle names, not imported."""

    name: str


@dataclass(slots=True, eq=False)
class Call:
    """What the pickle would have called and set; arguments and state hold plain values, `Name` and `Call`."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


def read_pickle(path: Path, names: Mapping[str, str]) -> Any:
    """Read a pickle, plain or gzip-compressed, without running it.

    Args:
        path: the file.
        names: allowed global ("numpy.core.multiarray._reconstruct") -> name under which it is recorded, so that
            a library's old and new module paths come out alike.

    Returns:
        The pickled object: plain values, lists, tuples, dicts with string keys, `Name` and `Call`.

    Raises:
        MissingSensor: it is not there.
        DriveError: it is cut, no pickle, larger than `MAX_PICKLE_BYTES`, or names anything that is not listed.
    """
    data = read_bytes(path, MAX_PICKLE_BYTES)
    if data.startswith(_GZIP_MAGIC):
        data = _inflate(data, path)
    machine = _Machine(names)
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if step == MAX_STEPS:
                raise ValueError(f"it has more than {MAX_STEPS} instructions")
            if opcode.name not in _STEPS:
                raise ValueError(f"instruction {opcode.name} has no place in a table")
            _STEPS[opcode.name](machine, argument)
        return machine.pop()
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise DriveError(f"{path} is not a readable pickle: {error}", _REMEDY) from error


def _inflate(data: bytes, path: Path) -> bytes:
    gzip = zlib.decompressobj(_GZIP_WINDOW)
    try:
        inflated = gzip.decompress(data, MAX_PICKLE_BYTES + 1)
    except zlib.error as error:
        raise DriveError(f"{path} is damaged: {error}", "download the file again") from error
    if len(inflated) > MAX_PICKLE_BYTES:
        raise DriveError(f"{path} holds more than {MAX_PICKLE_BYTES} bytes once decompressed", _REMEDY)
    if not gzip.eof or gzip.unused_data:
        fault = "has bytes behind its end" if gzip.eof else "ends too early: it is cut"
        raise DriveError(f"{path} {fault}", "download the file again")
    return inflated


class _Machine:
    """The stack and memo of a pickle being walked."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a value is missing")
        return value

    def pop_to_mark(self) -> list[Any]:
        start = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it names what is no name")
        full = f"{module}.{name}"
        if full not in self.names:
            raise ValueError(f"it names {full[:100]!r}, which no table of this dataset holds")
        self.push(Name(self.names[full]))

    def record_call(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise ValueError("it calls what is no function")
        self.push(Call(function.name, args))

    def record_state(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, Call) or target.state is not None:
            raise ValueError("it sets the state of what has none")
        target.state = state

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("it appends to what is no list")
        target.extend(values)

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        # String keys only: the hash of a tuple of tuples of ... costs exponential time or the C stack.
        if not isinstance(target, dict) or len(flat) % 2 or not all(isinstance(key, str) for key in flat[::2]):
            raise ValueError("it sets items other than of string keys in a dict")
        target.update(zip(flat[::2], flat[1::2], strict=True))

    def push_tuple(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(values)))

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push_name(module, name)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


_Step = Callable[[_Machine, Any], None]

_LITERALS = (
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)

_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_LITERALS.split(), _Machine.push),
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": lambda machine, _: machine.push(_MARK),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "BINPUT": _Machine.memoize,
    "LONG_BINPUT": _Machine.memoize,
    "MEMOIZE": lambda machine, _: machine.memoize(len(machine.memo)),
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "GLOBAL": lambda machine, name: machine.push_name(*name.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _Machine.record_call,
    "NEWOBJ": _Machine.record_call,
    "BUILD": _Machine.record_state,
}
