"""What a Parquet file says of its columns, read without pyarrow: what pyarrow reads, and no harm where it lies."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_schema.errors import CacheCorrupt
from hilda_schema.footer import MAX_DEPTH, ColumnChunk, column_chunks
from hilda_schema.table import parse_table
from hilda_schema.testing import tiny_cache

TABLE = pa.table(
    {
        "number": pa.array([1, None, 3] * 40),
        "text": ["é", "", "x" * 50] * 40,
        "list": [[1.0, 2.0], [], None] * 40,
        "deep": [{"a": {"b": 1}}] * 120,
        "flag": [True] * 120,
    }
)


def written(**options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(TABLE, file, **options)
    return file.getvalue()


PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False}


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        (PLAIN, True),
        (PLAIN | {"row_group_size": 7, "version": "1.0"}, True),
        (PLAIN | {"write_statistics": True, "write_page_index": True}, True),
        (PLAIN | {"use_dictionary": True}, False),
        (PLAIN | {"compression": "zstd"}, False),
        (PLAIN | {"column_encoding": {"number": "DELTA_BINARY_PACKED"}}, None),
    ],
)
def test_it_says_what_pyarrow_says(options: dict[str, object], plain: bool | None) -> None:
    data = written(**options)
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
    columns = [group.column(c) for group in groups for c in range(group.num_columns)]
    found = column_chunks(data)
    assert len(found) == len(columns)
    for mine, theirs in zip(found, columns, strict=True):
        assert mine.name == theirs.path_in_schema
        assert (mine.values, mine.bytes) == (theirs.num_values, theirs.total_uncompressed_size)
        is_plain = theirs.compression == "UNCOMPRESSED" and not set(theirs.encodings) - {"PLAIN", "RLE"}
        assert mine.plain == is_plain
    if plain is not None:
        assert all(each.plain for each in found) == plain


def test_bounds_are_the_readers() -> None:
    chunk = ColumnChunk("x", plain=True, values=5, bytes=100)
    assert chunk.fits(5, 100)
    assert not chunk.fits(4, 100)
    assert not chunk.fits(5, 99)
    assert not ColumnChunk("x", plain=False, values=0, bytes=0).fits(5, 100)


DATA = written(**PLAIN)
FOOTER = int.from_bytes(DATA[-8:-4], "little")


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, FOOTER - 1), st.integers(0, 255)), max_size=4), st.integers(0, FOOTER))
def test_a_changed_footer_gives_chunks_or_a_value_error(changes: list[tuple[int, int]], cut: int) -> None:
    footer = bytearray(DATA[-8 - FOOTER : -8])
    for at, value in changes:
        footer[at] = value
    footer = footer[: len(footer) - cut // 4]
    data = DATA[: -8 - FOOTER] + bytes(footer) + len(footer).to_bytes(4, "little") + b"PAR1"
    with contextlib.suppress(ValueError):
        assert all(isinstance(each, ColumnChunk) for each in column_chunks(data))


def file_of(footer: bytes) -> bytes:
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PAR1",
        b"PAR1" + b"\xff\xff\xff\xff" + b"PAR1",
        file_of(b""),
        file_of(b"\0"),
        file_of(b"\x19" + b"\x19" * 5000),  # lists of lists of ...
        file_of(b"\x1c" * 5000),  # structs of structs of ...
        file_of(b"\x19\xfc" + b"\xff" * 9 + b"\x01"),  # a list of 2^63 structs
        file_of(b"\x18" + b"\xff" * 9 + b"\x01"),  # 2^63 bytes
        file_of(b"\x16" + b"\xff" * 40),  # a number without end
        file_of(b"\x1b\x00"),  # a map, which Parquet has none of
    ],
)
def test_what_is_no_footer_is_refused(data: bytes) -> None:
    assert MAX_DEPTH < 100  # far below where Python's stack ends
    with pytest.raises(ValueError, match=r"it does not end|its footer"):
        column_chunks(data)


def test_a_footer_that_contradicts_itself_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    """Found by fuzzing: pyarrow 26 ends the process when asked about a column of another type than its statistics.

    `frames.parquet` as its writer makes it, the type of a text column changed in the schema: in a process of its own.
    """
    store = tiny_cache(tmp_path / "cache", scenes=1, frames=2, points=5)
    data = (store / "frames.parquet").read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    at = data.index(b"\x15\x0c\x25\x00\x18\x03key", start)  # type: zigzag of 6, a byte array; required; name "key"
    (tmp_path / "lie").write_bytes(data[: at + 1] + b"\x04" + data[at + 2 :])  # 2: an int64
    code = (
        "import sys\nfrom pathlib import Path\nfrom hilda_schema.errors import CacheCorrupt\n"
        "from hilda_schema.table import parse_table\n"
        "try:\n    parse_table(Path(sys.argv[1]).read_bytes(), 2, 'x')\n"
        "except CacheCorrupt as error:\n    print(error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lie")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("x ")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Found by fuzzing: it was an error of Python's when the frame was looked up."""
    store = tiny_cache(tmp_path / "cache", scenes=1, frames=2, points=5)
    data = (store / "frames.parquet").read_bytes()
    parse_table(data, 2, "x")
    at = data.index(b"toy/scene-0000/000001")
    with pytest.raises(CacheCorrupt, match=r"x is not a Parquet file: .*UTF8"):
        parse_table(data[:at] + b"\xff" + data[at + 1 :], 2, "x")


def test_opening_a_store_takes_no_more_memory_than_its_files(tmp_path: Path) -> None:
    """Found by fuzzing: reading a file allocated the largest size that it might have, 4 GiB."""
    store = tiny_cache(tmp_path / "cache", scenes=1, frames=2, points=5)
    code = (
        "import os, resource, sys\nimport hilda_schema.reader as reader\nimport numpy, pyarrow.parquet\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * os.sysconf('SC_PAGE_SIZE') + 2**28\nresource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "print(len(reader.open_cache(sys.argv[1])[0].pairs.point))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 0
    assert np.isfinite(float(done.stdout))
