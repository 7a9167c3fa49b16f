"""A Parquet file's own account of its columns, read before any library acts on it.

pyarrow ends the process, instead of raising, where it is asked about a column whose footer contradicts itself, and it
allocates what a footer claims. So the footer (Thrift's compact protocol) is walked here first: a few lines that can do
no more than fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 16
_MAGIC = b"PAR1"
_UNCOMPRESSED, _PLAIN, _RLE = 0, 0, 3
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """What a footer says of one column in one group of rows."""

    name: str
    plain: bool  # neither compressed nor encoded, in this file, not encrypted
    values: int
    bytes: int  # once decompressed

    def fits(self, max_values: int, max_bytes: int) -> bool:
        """Whether the column takes no more memory than it does on disk, and has no more values than it can have."""
        return self.plain and self.values <= max_values and self.bytes <= max_bytes


def column_chunks(data: bytes) -> list[ColumnChunk]:
    """All column chunks of a Parquet file.

    Raises:
        ValueError: it is no Parquet file.
    """
    length = int.from_bytes(data[-8:-4], "little")
    if data[-4:] != _MAGIC or length + 12 > len(data):
        raise ValueError("it does not end as a Parquet file")
    try:
        groups = _Reader(data[-8 - length : -8]).struct(0)[4]
        return [_chunk(column) for group in groups for column in group[1]]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"its footer is none of a Parquet file: {error!r}") from None


def _chunk(column: dict[int, Any]) -> ColumnChunk:
    said = column[3]
    # 1: in another file; 8, 9: encrypted
    own = not column.keys() & {1, 8, 9}
    return ColumnChunk(
        name=b".".join(said[3]).decode("utf-8", "backslashreplace"),
        plain=own and said[4] == _UNCOMPRESSED and set(said[2]) <= {_PLAIN, _RLE},
        values=said[5] if said[5] >= 0 else 2**63,
        bytes=said[6] if said[6] >= 0 else 2**63,
    )


class _Reader:
    """Thrift's compact protocol, as far as Parquet needs it: structs are dictionaries of their fields' numbers."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._zigzag()
            kind = header & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("its footer is nested too deep")
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind in (_LIST, _SET):
            header = self._byte()
            count = self._varint() if header >> 4 == 15 else header >> 4
            # Each item takes a byte at least, so that a list is no longer than the footer.
            return [self._value(header & 15, depth + 1) for _ in range(min(count, len(self.data) + 1))]
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError(f"its footer holds a value of kind {kind}")

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError("its footer is cut")
        self.at += count
        return self.data[self.at - count : self.at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            if (shift := shift + 7) > 63:
                raise ValueError("its footer holds a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
