"""The array table: Zarr metadata as the specification says it, chunk rules, names."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import zarr
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from zarr.core.metadata.v3 import ArrayV3Metadata

from hilda_schema.layout import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    ArraySpec,
    PartSizes,
    groups_of,
    part_arrays,
    ragged_rows,
)
from hilda_schema.shard import chunked, damaged_chunks, index_bytes, shard_bytes, span_buffers, write_shard
from hilda_schema.testing import tiny_recipe

# The specification's own example: a change here is a change of the format.
TOKENS = {
    "attributes": {},
    "chunk_grid": {"configuration": {"chunk_shape": [40, 6, 16, 32, 384]}, "name": "regular"},
    "chunk_key_encoding": {"configuration": {"separator": "."}, "name": "default"},
    "codecs": [
        {
            "configuration": {
                "chunk_shape": [1, 6, 16, 32, 384],
                "codecs": [{"configuration": {"endian": "little"}, "name": "bytes"}, {"name": "crc32c"}],
                "index_codecs": [{"configuration": {"endian": "little"}, "name": "bytes"}, {"name": "crc32c"}],
                "index_location": "end",
            },
            "name": "sharding_indexed",
        }
    ],
    "data_type": "float16",
    "dimension_names": ["frame", "camera", "row", "column", "channel"],
    "fill_value": "NaN",
    "node_type": "array",
    "shape": [40, 6, 16, 32, 384],
    "zarr_format": 3,
}

DTYPES = ["float16", "float32", "int8", "uint8", "uint16", "uint32", "int32", "int64", "bool"]


def sizes(**changes: object) -> PartSizes:
    return PartSizes(**{"frames": 3, "points": 100, "pairs": 50, "point_columns": frozenset(), **changes})


def test_the_metadata_of_a_token_grid_is_the_specified_one() -> None:
    shape = (40, 6, 16, 32, 384)
    spec = ArraySpec("dinov2/layer_12/tokens", "float16", tuple(TOKENS["dimension_names"]), shape, 1)
    assert json.loads(spec.metadata()) == TOKENS
    assert spec.shard_path == "dinov2/layer_12/tokens/c.0.0.0.0.0"


def test_every_array_is_valid_zarr() -> None:
    for kind in ("grid", "point"):
        for dtype in ("float16", "int8"):
            columns = frozenset({"ring", "label", "time_offset_ns"})
            for pairs in (0, 1, 10**6):
                arrays = part_arrays(tiny_recipe(kind, dtype), sizes(pairs=pairs, point_columns=columns))
                for spec in arrays.values():
                    parsed = ArrayV3Metadata.from_dict(json.loads(spec.metadata()))
                    assert parsed.shape == spec.shape
                    assert parsed.dimension_names == spec.dims
                    assert parsed.encode_chunk_key((0,) * len(spec.shape)) == spec.shard_path.rsplit("/", 1)[1]


def test_a_part_has_the_specified_arrays() -> None:
    arrays = part_arrays(tiny_recipe(dtype="int8"), sizes(point_columns=frozenset({"ring"})))
    table = {path: (spec.dtype, spec.shape) for path, spec in arrays.items()}
    assert table == {
        "points/xyz_m": ("float32", (100, 3)),
        "points/intensity": ("float32", (100,)),
        "points/ground": ("bool", (100,)),
        "points/ring": ("uint8", (100,)),
        "points/offset": ("int64", (4,)),
        "pairs/point": ("uint32", (50,)),
        "pairs/camera": ("uint8", (50,)),
        "pairs/depth_m": ("float16", (50,)),
        "pairs/visible": ("bool", (50,)),
        "pairs/uv": ("uint16", (50, 2)),
        "pairs/offset": ("int64", (4,)),
        "present": ("bool", (3, 3)),
        "vit/layer_2/tokens": ("int8", (3, 3, 6, 10, 8)),
        "vit/layer_2/scale": ("float16", (3, 3, 6, 10)),
        "vit/layer_2/channel_mean": ("float32", (8,)),
        "vit/layer_2/channel_scale": ("float32", (8,)),
        "vit/layer_4/tokens": ("int8", (3, 3, 6, 10, 8)),
        "vit/layer_4/scale": ("float16", (3, 3, 6, 10)),
        "vit/layer_4/channel_mean": ("float32", (8,)),
        "vit/layer_4/channel_scale": ("float32", (8,)),
        "vit/global": ("float16", (3, 3, 8)),
        "cnn/layer_stage1/tokens": ("int8", (3, 3, 12, 20, 4)),
        "cnn/layer_stage1/scale": ("float16", (3, 3, 12, 20)),
        "cnn/layer_stage1/channel_mean": ("float32", (4,)),
        "cnn/layer_stage1/channel_scale": ("float32", (4,)),
        "cnn/layer_stage2/tokens": ("int8", (3, 3, 3, 5, 6)),
        "cnn/layer_stage2/scale": ("float16", (3, 3, 3, 5)),
        "cnn/layer_stage2/channel_mean": ("float32", (6,)),
        "cnn/layer_stage2/channel_scale": ("float32", (6,)),
    }
    assert groups_of(arrays) == (
        "",
        "cnn",
        "cnn/layer_stage1",
        "cnn/layer_stage2",
        "pairs",
        "points",
        "vit",
        "vit/layer_2",
        "vit/layer_4",
    )
    point = part_arrays(tiny_recipe("point"), sizes())
    assert (point["vit/layer_2/features"].dtype, point["vit/layer_2/features"].shape) == ("float16", (50, 8))


@given(rows=st.integers(0, 10**9), row_bytes=st.integers(1, 2**22))
def test_ragged_chunks_are_bounded(rows: int, row_bytes: int) -> None:
    chunk = ragged_rows(rows, row_bytes)
    assert 1 <= chunk <= max(1, min(CHUNK_ROWS, rows))
    assert chunk == 1 or chunk * row_bytes <= CHUNK_BYTES
    # Only a whole array is a chunk of another size than a power of two.
    assert chunk == max(1, rows) or chunk & (chunk - 1) == 0


def make_spec(dtype: str, shape: tuple[int, ...], chunk_rows: int) -> ArraySpec:
    return ArraySpec("array", dtype, tuple("xyz"[: len(shape)]), shape, chunk_rows)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(0, 30), st.integers(1, 4)),
    chunk_rows=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_zarr_python_reads_any_shard(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: tuple[int, int],
    chunk_rows: int,
    cuts: list[int],
    seed: int,
) -> None:
    spec = make_spec(dtype, shape, chunk_rows)
    values = np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
    pieces = np.split(values, sorted(min(cut, shape[0]) for cut in cuts))
    folder = tmp_path_factory.mktemp("array") / "array"
    folder.mkdir()
    (folder / "zarr.json").write_bytes(spec.metadata())
    if spec.chunks:
        with (folder.parent / spec.shard_path).open("wb") as file:
            seal = write_shard(file, spec, chunked(spec, pieces))
        assert seal.size == (folder.parent / spec.shard_path).stat().st_size == shard_bytes(spec)
        assert len(seal.chunk_crc32c) == spec.chunks
    array = zarr.open_array(folder, mode="r")
    assert array.dtype == np.dtype(dtype)
    assert np.array_equal(array[:], values)


def test_a_shard_is_chunks_checksums_and_an_index() -> None:
    spec = make_spec("uint16", (3,), 2)
    file = io.BytesIO()
    write_shard(file, spec, chunked(spec, [np.array([1, 2, 3], np.uint16)]))
    first, second = struct.pack("<2H", 1, 2), struct.pack("<2H", 3, 65535)
    index = struct.pack("<4Q", 0, 8, 8, 8)
    expected = b"".join(part + struct.pack("<I", crc32c(part)) for part in (first, second, index))
    assert file.getvalue() == expected
    assert expected.endswith(index_bytes(spec))


def test_a_chunk_of_another_shape_or_number_is_a_bug_that_is_noticed() -> None:
    spec = make_spec("uint16", (4,), 2)
    for chunks in ([np.zeros(2, np.uint16)], [np.zeros(3, np.uint16)] * 2, [np.zeros(2, np.int16)] * 2):
        with pytest.raises(ValueError, match="array"):
            write_shard(io.BytesIO(), spec, chunks)


@given(
    chunks=st.integers(1, 5),
    size=st.integers(1, 20),
    data=st.data(),
)
def test_damaged_chunks_are_found_exactly(chunks: int, size: int, data: st.DataObject) -> None:
    values = np.arange(chunks * size, dtype=np.uint8).reshape(chunks, size)
    sealed = tuple(crc32c(row.tobytes()) for row in values)
    stored = np.array(sealed, "<u4")
    wrong = data.draw(st.sets(st.integers(0, chunks - 1)))
    for k in wrong:
        if data.draw(st.booleans()):
            values[k, data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
        else:
            stored[k] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
    assert damaged_chunks(values, stored, sealed) == sorted(wrong)


def test_buffers_of_neighbouring_chunks_lie_in_the_callers_arrays() -> None:
    chunks, stored = np.zeros((2, 3), "<u2"), np.zeros(2, "<u4")
    data = bytes(range(20))
    rest = memoryview(data)
    for buffer in span_buffers(chunks, stored):
        buffer[:] = rest[: len(buffer)]
        rest = rest[len(buffer) :]
    assert not len(rest)
    assert chunks.tobytes() + stored.tobytes() == data[0:6] + data[10:16] + data[6:10] + data[16:20]
