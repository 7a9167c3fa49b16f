"""Columns of a pickled pandas DataFrame, without pandas: PandaSet stores every sweep as one.

Known layouts, all read from what real pandas versions write (1.0 to 3.1, pickle protocols 3 to 5): a DataFrame holds
a BlockManager, that holds 2-D blocks of one dtype with the columns they stand for, and an Index of column names.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.safe_pickle import Call, read_pickle
from hilda_schema.errors import DriveError

_INDEX_CLASSES = ("base.Index", "range.RangeIndex", "numeric.Int64Index")
_NAMES = {
    "pandas.DataFrame": "DataFrame",
    "pandas.core.frame.DataFrame": "DataFrame",
    "pandas.core.internals.managers.BlockManager": "BlockManager",
    "pandas._libs.internals._unpickle_block": "block",
    "pandas.core.indexes.base._new_Index": "index",
    "pandas.Index": "Index",
    "pandas.RangeIndex": "Index",
    **{f"pandas.core.indexes.{name}": "Index" for name in _INDEX_CLASSES},
    "pandas.StringDtype": "StringDtype",
    "pandas.arrays.ArrowStringArray": "ArrowStringArray",
    "pandas.arrays.StringArray": "StringArray",
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": "StringArray",
    "pyarrow.lib._restore_array": "arrow_array",
    "pyarrow.lib.type_for_alias": "arrow_type",
    "pyarrow.lib.py_buffer": "arrow_buffer",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    **{f"numpy.{core}.multiarray._reconstruct": "array" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": "array_of_buffer" for core in ("core", "_core")},
    "builtins.slice": "slice",
    "builtins.bytearray": "bytearray",
}
_NUMERIC_CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_OBJECT_CODES = ("O", "O8")
_OFFSET_DTYPES = {"string": "<i4", "large_string": "<i8"}


def read_columns(path: Path, wanted: tuple[str, ...], text: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """Read columns of a pickled DataFrame, plain or gzip-compressed, running nothing of it.

    Args:
        path: the file.
        wanted: names of numeric columns.
        text: names of columns of strings.

    Returns:
        name -> (N,) read-only array of its own numeric dtype, or of `str` objects, all of one length; columns that
        share a block with a wanted one come along.

    Raises:
        MissingSensor: the file is not there.
        DriveError: it is damaged, holds anything but a DataFrame, or lacks a wanted column of that kind.
    """
    frame = read_pickle(path, _NAMES)
    try:
        labels, blocks = _manager(frame)
        columns: dict[str, NDArray[Any]] = {}
        for values, placement in blocks:
            names = _placed_names(placement, labels)
            if columns.keys() & names:
                raise ValueError("two blocks stand for one column")
            if not set(wanted).isdisjoint(names):
                block = _array(values)
                if block.ndim != 2 or len(block) != len(names):
                    raise ValueError(f"a block of shape {block.shape} stands for {len(names)} columns")
                columns |= zip(names, block, strict=True)
            elif not set(text).isdisjoint(names):
                columns |= {name: column for name, column in _texts(values, names) if name in text}
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        message = f"{path} is not a DataFrame of a known layout: {error}"
        raise DriveError(message, "write it with pandas 1.0 to 3.1, or report this file's pandas version") from error
    if missing := [name for name in wanted + text if name not in columns]:
        raise DriveError(f"{path} has no column {missing[0]!r}, only {str(labels)[:200]}", "this is no such table")
    if len({len(column) for column in columns.values()}) > 1:
        raise DriveError(f"{path} has columns of different lengths", "download the file again")
    return columns


def _manager(frame: Any) -> tuple[list[str], list[tuple[Any, Any]]]:
    """Column names, and (values, placement) of every block."""
    if not isinstance(frame, Call) or frame.name != "DataFrame":
        raise ValueError("the pickled object is another one")
    manager = frame.state["_mgr"] if "_mgr" in frame.state else frame.state["_data"]
    if manager.state is not None:  # pandas < 1.3: (axes, values, items, {"0.14.1": {"axes", "blocks"}})
        content = manager.state[3]["0.14.1"]
        blocks = [(block["values"], block["mgr_locs"]) for block in content["blocks"]]
        return _labels(content["axes"][0]), blocks
    blocks, axes = manager.args
    return _labels(axes[0]), [(block.args[0], block.args[1]) for block in blocks]


def _placed_names(placement: Any, labels: list[str]) -> list[str]:
    """Names of the columns that a block stands for."""
    if isinstance(placement, Call) and placement.name == "slice":
        positions: Any = range(*placement.args)
    else:
        positions = _array(placement)
    if len(positions) > len(labels):
        raise ValueError("its blocks stand for more columns than there are")
    return [labels[position] for position in positions]


def _labels(axis: Call) -> list[str]:
    data = axis.args[1]["data"]
    labels: list[str]
    if data.name == "ArrowStringArray":
        labels = _arrow_strings(data.state["_pa_array"])
    elif data.name == "StringArray":
        labels = data.state[1].state[4]
    else:
        labels = data.state[4]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("the columns have no names")
    return labels


def _arrow_strings(array: Call) -> list[str]:
    kind, length, _, start, buffers = array.args[0][:5]
    raw = [_bytes(buffer.args[0]) for buffer in buffers[1:]]
    offsets = np.frombuffer(raw[0], _OFFSET_DTYPES[kind.args[0]])[start : start + length + 1].tolist()
    return [raw[1][begin:end].decode() for begin, end in pairwise(offsets)]


def _texts(value: Any, names: list[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Columns of a block of strings; one that holds anything else is left out, and then missing."""
    fortran = False
    if value.name == "ArrowStringArray":
        flat: Any = _arrow_strings(value.state["_pa_array"])
        shape: Any = (1, len(flat))
    elif value.name == "StringArray":
        flat = value.state[1].state[4]
        shape = (1, len(flat))
    elif value.name == "array" and value.state[2].args[0] in _OBJECT_CODES:
        _, shape, _, fortran, flat = value.state
    else:
        return
    if not isinstance(flat, list) or tuple(shape) != (len(names), len(flat) // len(names)):
        raise ValueError(f"a block of strings does not stand for {len(names)} columns")
    rows = shape[1]
    for k, name in enumerate(names):
        column = flat[k :: len(names)] if fortran else flat[k * rows : (k + 1) * rows]
        if all(isinstance(each, str) for each in column):
            yield name, np.array(column, dtype=object)


def _array(value: Any) -> NDArray[Any]:
    """A numeric array; its byte count is checked against its shape before numpy sees either."""
    if value.name == "array_of_buffer":
        raw, dtype, shape, order = value.args
    else:
        _, shape, dtype, fortran, raw = value.state
        order = "F" if fortran else "C"
    # Nothing untrusted is printed before its type is known: a list of lists of ... can print for ever.
    code, byte_order = dtype.args[0], dtype.state[1]
    if code not in _NUMERIC_CODES or byte_order not in ("<", "|", ">"):
        raise ValueError("a column is not numeric")
    numeric = np.dtype(byte_order + code)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError("an array has no shape")
    data = _bytes(raw)
    if prod(shape) * numeric.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes do not fill an array of {prod(shape)} x {numeric}")
    return np.frombuffer(data, numeric).reshape(shape, order=order)


def _bytes(value: Any) -> bytes:
    if isinstance(value, Call) and value.name == "bytearray":
        (value,) = value.args
    if not isinstance(value, bytes | bytearray):
        raise ValueError("an array is not stored as bytes")
    return bytes(value)
