"""Columns of a Feather file (Arrow IPC, the format of Argoverse 2), with bounds before anything is decompressed.

pyarrow allocates whatever size a compressed buffer claims to have, so a few kilobytes can ask for terabytes. The
claims are therefore added up first, from the message's own metadata (a flatbuffer: Arrow columnar format, `Message`
and `RecordBatch`), and only then is the message decoded, from the same bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.types as types
from numpy.typing import NDArray

from hilda_cache.drives.files import MAX_SWEEP_BYTES, read_bytes
from hilda_schema.errors import DriveError

_MAGIC = b"ARROW1"
_HEADER_BYTES = 8  # the magic, padded; the stream of messages begins behind it
_DAMAGED = "the file is damaged or of another format: download it again"


def read_feather(path: Path, numbers: tuple[str, ...], text: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """Read columns of numbers and strings.

    Args:
        path: a Feather version 2 file.
        numbers: names of numeric columns.
        text: names of columns of strings.

    Returns:
        name -> (N,) array of the column's own dtype, NaN for empty cells; object dtype holding `str` for strings.

    Raises:
        MissingSensor: the file is not there.
        DriveError: it is cut or damaged, lacks a column, has empty cells for integers or text, or
            claims more than `MAX_SWEEP_BYTES`.
    """
    data = read_bytes(path, MAX_SWEEP_BYTES)
    if not data.startswith(_MAGIC) or not data.endswith(_MAGIC):
        raise DriveError(f"{path} is cut, or no Feather file of version 2", _DAMAGED)
    try:
        schema, batches = _decode(data, path)
        table = pa.Table.from_batches(batches, schema).combine_chunks()
        if missing := [name for name in numbers + text if name not in table.column_names]:
            raise DriveError(f"{path} has no column {missing[0]!r}, only {table.column_names}", _DAMAGED)
        return {name: _column(table[name], name, path, name in text) for name in numbers + text}
    except (pa.ArrowException, OSError, EOFError, ValueError, struct.error) as error:
        raise DriveError(f"{path} is not a readable Feather file: {error}", _DAMAGED) from error


def _decode(data: bytes, path: Path) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    messages = iter(pa.ipc.MessageReader.open_stream(pa.BufferReader(pa.py_buffer(data)[_HEADER_BYTES:])))
    first = next(messages, None)
    if first is None or first.type != "schema":
        raise ValueError("it does not begin with a schema")
    schema = pa.ipc.read_schema(first)
    if len(set(schema.names)) < len(schema.names):
        raise ValueError("it gives a column twice")
    batches: list[pa.RecordBatch] = []
    total = 0
    for message in messages:
        if message.type != "record batch":
            raise ValueError(f"it holds a {message.type}, where a plain table has none")
        total += _decoded_bytes(message.metadata.to_pybytes(), message.body)
        if total > MAX_SWEEP_BYTES:
            raise DriveError(f"{path} claims {total} bytes or more once decompressed", "do not trust this file")
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
        batches.append(batch)
    return schema, batches


def _column(column: pa.ChunkedArray, name: str, path: Path, text: bool) -> NDArray[Any]:
    kind = column.type
    fits = (types.is_string, types.is_large_string) if text else (types.is_integer, types.is_floating)
    if not any(fit(kind) for fit in fits):
        raise DriveError(f"{path}: column {name!r} holds {kind}, not {'text' if text else 'numbers'}", _DAMAGED)
    if column.null_count and not types.is_floating(kind):  # pandas writes a NaN as an empty cell: NaN again below
        raise DriveError(f"{path}: column {name!r} has {column.null_count} empty cells", _DAMAGED)
    array: NDArray[Any] = column.to_numpy()
    return array


def _decoded_bytes(metadata: bytes, body: pa.Buffer) -> int:
    """What the buffers of a record batch will take once decompressed, by their own account."""
    batch = _table_field(metadata, struct.unpack_from("<I", metadata)[0], 2)
    if batch is None:
        raise ValueError("a message has no header")
    batch += struct.unpack_from("<I", metadata, batch)[0]
    buffers, compression = _table_field(metadata, batch, 2), _table_field(metadata, batch, 3)
    if buffers is None:
        return 0
    vector = buffers + struct.unpack_from("<I", metadata, buffers)[0]
    (count,) = struct.unpack_from("<I", metadata, vector)
    total = 0
    for offset, length in struct.iter_unpack("<qq", metadata[vector + 4 : vector + 4 + 16 * count]):
        if compression is None or length == 0:
            total += max(length, 0)
            continue
        (claimed,) = struct.unpack_from("<q", body, offset)
        if claimed < -1:
            raise ValueError("a buffer claims a negative size")
        total += length if claimed == -1 else claimed  # -1: stored as it is
    return total


def _table_field(metadata: bytes, table: int, index: int) -> int | None:
    """Position of a field of a flatbuffer table; None where it is left out."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if vtable < 0:
        raise ValueError("a message points outside itself")
    slot = 4 + 2 * index
    if slot >= struct.unpack_from("<H", metadata, vtable)[0]:
        return None
    (relative,) = struct.unpack_from("<H", metadata, vtable + slot)
    return table + relative if relative else None
