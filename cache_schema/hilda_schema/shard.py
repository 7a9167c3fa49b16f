"""One array's bytes: a standard Zarr v3 shard with a checksum behind every chunk.

    chunk 0, crc32c, chunk 1, crc32c, ..., index ((offset, length) of every chunk, uint64), crc32c of the index

Chunks are uncompressed, in order and without gaps, so rows that lie together on disk are read together, straight into
the caller's array. The checksums inside the file are Zarr's own; the seal repeats them, which binds every chunk to its
place: a chunk moved in from elsewhere is noticed although its own checksum is right.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from fastcrc import crc32
from numpy.typing import NDArray

from hilda_schema.layout import ArraySpec
from hilda_schema.manifest import FileSeal

CRC_BYTES = 4

crc32c = crc32.iscsi  # the same checksum: iSCSI made it known


def write_shard(file: BinaryIO, spec: ArraySpec, chunks: Iterable[NDArray[np.generic]]) -> FileSeal:
    """Write an array's chunks, in order.

    Args:
        file: open for writing, at its start.
        spec: the array.
        chunks: `spec.chunks` of them, each of shape `spec.chunk_shape`.

    Returns:
        What the seal says of the file.

    Raises:
        ValueError: chunks of another shape, dtype or number: a mistake of the caller.
    """
    digest, crcs = hashlib.sha256(), []

    def put(data: memoryview | bytes) -> None:
        digest.update(data)
        file.write(data)

    for chunk in chunks:
        data = as_bytes(chunk)
        if chunk.shape != spec.chunk_shape or chunk.dtype != spec.dtype:
            raise ValueError(f"{spec.path}: a chunk of {chunk.dtype} {chunk.shape} is not {spec.chunk_shape}")
        crcs.append(crc32c(data))
        put(data)
        put(struct.pack("<I", crcs[-1]))
    if len(crcs) != spec.chunks:
        raise ValueError(f"{spec.path}: {len(crcs)} chunks are not {spec.chunks}")
    put(index_bytes(spec))
    return FileSeal(size=shard_bytes(spec), sha256=digest.hexdigest(), chunk_crc32c=tuple(crcs))


def write_array(folder: Path, spec: ArraySpec, rows: Iterable[NDArray[Any]]) -> FileSeal:
    """Write one array that has rows into a part's folder; what the seal says of it.

    Args:
        folder: the part's.
        spec: the array.
        rows: pieces (n, ...) of any length n.
    """
    with (folder / spec.shard_path).open("xb") as file:
        return write_shard(file, spec, chunked(spec, rows))


def chunked(spec: ArraySpec, rows: Iterable[NDArray[np.generic]]) -> Iterator[NDArray[np.generic]]:
    """Cut rows that come in pieces (n, ...) of any length (frames) into chunks of an array, padding the last."""
    chunk = np.full(spec.chunk_shape, spec.fill, spec.dtype)
    filled = 0
    for piece in rows:
        taken = 0
        while taken < len(piece):
            if not filled and len(piece) - taken >= spec.chunk_rows:
                yield piece[taken : taken + spec.chunk_rows]
                taken += spec.chunk_rows
                continue
            count = min(spec.chunk_rows - filled, len(piece) - taken)
            chunk[filled : filled + count] = piece[taken : taken + count]
            filled, taken = filled + count, taken + count
            if filled == spec.chunk_rows:
                yield chunk
                chunk = np.full(spec.chunk_shape, spec.fill, spec.dtype)
                filled = 0
    if filled:
        yield chunk


def index_bytes(spec: ArraySpec) -> bytes:
    """The shard's index with its checksum: it follows from the array alone."""
    stride = spec.chunk_bytes + CRC_BYTES
    index = np.empty((spec.chunks, 2), "<u8")
    index[:, 0] = np.arange(spec.chunks, dtype=np.uint64) * stride
    index[:, 1] = stride
    data = index.tobytes()
    return data + struct.pack("<I", crc32c(data))


def shard_bytes(spec: ArraySpec) -> int:
    """Size of the shard's file."""
    return spec.chunks * (spec.chunk_bytes + CRC_BYTES) + spec.chunks * 16 + CRC_BYTES


def as_bytes(array: NDArray[np.generic]) -> memoryview:
    """The bytes of a contiguous array of any shape, without a copy."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def span_buffers(chunks: NDArray[np.generic], stored: NDArray[np.uint32]) -> list[memoryview]:
    """Where the bytes of neighbouring chunks go: chunk, checksum, chunk, checksum, ...

    Args:
        chunks: (n, ...) contiguous, one row a chunk.
        stored: (n,) little-endian uint32 for the checksums read with them.
    """
    data, crcs = as_bytes(chunks), as_bytes(stored)
    size = len(data) // len(chunks)
    buffers = []
    for k in range(len(chunks)):
        buffers += [data[k * size : (k + 1) * size], crcs[k * CRC_BYTES : (k + 1) * CRC_BYTES]]
    return buffers


def damaged_chunks(chunks: NDArray[np.generic], stored: NDArray[np.uint32], sealed: tuple[int, ...]) -> list[int]:
    """Which of the chunks read are not the ones that were sealed at their place.

    Args:
        chunks: (n, ...) as read.
        stored: (n,) checksums as read.
        sealed: n checksums from the seal.
    """
    data = as_bytes(chunks)
    size = len(data) // len(chunks)
    found = [crc32c(data[k * size : (k + 1) * size]) for k in range(len(chunks))]
    return [k for k, crc in enumerate(found) if not crc == int(stored[k]) == sealed[k]]
