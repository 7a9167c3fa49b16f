"""frames.parquet: one row a frame, in reading order, derived from the seals.

Plain values without compression: a table of 158,081 frames is 75 MB, and a hostile one cannot be larger in memory than
it is on disk.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from hilda_schema.errors import CacheConflict, CacheCorrupt
from hilda_schema.footer import column_chunks
from hilda_schema.keys import Key
from hilda_schema.manifest import FrameRow, PartEntry, Seal, canonical_json

POSE = pa.list_(pa.field("element", pa.float64(), nullable=False))


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


SCHEMA = pa.schema(
    [
        _required("index", pa.int64()),
        _required("key", pa.string()),
        _required("scene", pa.string()),
        _required("frame", pa.string()),
        _required("stamp_ns", pa.int64()),
        _required("world_SE3_lidar", POSE),
        _required("world_SE3_ego", POSE),
        pa.field("prev", pa.int64()),
        pa.field("next", pa.int64()),
        _required("part", pa.string()),
        _required("row", pa.int64()),
        _required("points", pa.int64()),
        _required("points_dropped", pa.int64()),
        _required("pairs", pa.int64()),
        _required("points_seen", pa.int64()),
        _required("absent", pa.string()),
        _required("seal_sha256", pa.string()),
    ]
)
"""`prev` and `next` are row indices of the neighbours in time, null where there is none in the store; `absent` is a
JSON object, camera (or "lidar") -> reason; poses are 4 x 4 in row order."""


def frames_table(parts: Sequence[tuple[Seal, PartEntry]]) -> pa.Table:
    """The table of a store.

    Args:
        parts: seals and their entries, in reading order.

    Raises:
        CacheConflict: two parts hold the same frame.
    """
    rows = list(_rows(parts))
    seen: dict[str, str] = {}
    for row in rows:
        if (other := seen.setdefault(str(row["key"]), str(row["part"]))) != row["part"]:
            raise CacheConflict(f"frame {row['key']} is in two parts, {other} and {row['part']}")
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _rows(parts: Sequence[tuple[Seal, PartEntry]]) -> Iterator[dict[str, object]]:
    frames = [(seal, entry, row, frame) for seal, entry in parts for row, frame in enumerate(seal.frames)]
    for index, (seal, entry, row, frame) in enumerate(frames):
        before = frames[index - 1] if index else None
        after = frames[index + 1] if index + 1 < len(frames) else None
        yield {
            "index": index,
            "key": frame.key,
            "scene": seal.scene,
            "frame": Key.parse(frame.key).frame,
            "stamp_ns": frame.stamp_ns,
            "world_SE3_lidar": frame.world_SE3_lidar,
            "world_SE3_ego": frame.world_SE3_ego,
            "prev": index - 1 if before and _consecutive(before[0], before[3], seal, frame) else None,
            "next": index + 1 if after and _consecutive(seal, frame, after[0], after[3]) else None,
            "part": seal.part,
            "row": row,
            "points": frame.points,
            "points_dropped": frame.points_dropped,
            "pairs": frame.pairs,
            "points_seen": frame.points_seen,
            "absent": canonical_json(frame.absent).decode(),
            "seal_sha256": entry.seal_sha256,
        }


def _consecutive(seal: Seal, frame: FrameRow, next_seal: Seal, next_frame: FrameRow) -> bool:
    """Whether one frame follows the other with none missing between them."""
    if seal.scene != next_seal.scene:
        return False
    if frame.position is None or next_frame.position is None:
        return True
    return next_frame.position == frame.position + 1


def reading_order(parts: Iterable[tuple[Seal, PartEntry]]) -> list[tuple[Seal, PartEntry]]:
    """Sort parts by scene, then by time."""
    return sorted(parts, key=lambda part: (part[0].scene, part[0].frames[0].stamp_ns, part[0].part))


def table_bytes(table: pa.Table) -> bytes:
    """The file of a table: the same bytes for the same rows."""
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        row_group_size=2**16,
        version="2.6",
    )
    return sink.getvalue()


def parse_table(data: bytes, frames: int, where: str) -> pa.Table:
    """Read the file back.

    Args:
        data: the file's bytes, matching the manifest's hash.
        frames: how many rows the manifest says there are.
        where: file name for the message.

    Raises:
        CacheCorrupt: it is not such a table, or would be much larger in memory than on disk.
    """
    try:
        _check_bounds(data, frames, where)
        # Neither pre-buffering nor threads: Arrow's pools are still starting when a short process already ends, and
        # then abort it.
        file = pq.ParquetFile(io.BytesIO(data), pre_buffer=False)
        if file.metadata.num_rows != frames:
            raise CacheCorrupt(f"{where} has {file.metadata.num_rows} rows, the manifest says {frames}")
        table = file.read(use_threads=False)
        table.validate(full=True)  # text is UTF-8
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CacheCorrupt(f"{where} is not a Parquet file: {str(error).splitlines()[0][:200]}") from None
    if not table.schema.equals(SCHEMA):
        raise CacheCorrupt(f"{where} does not have the columns of a cache")
    return table


def _check_bounds(data: bytes, frames: int, where: str) -> None:
    for chunk in column_chunks(data):
        if not chunk.fits(16 * frames, len(data)):
            raise CacheCorrupt(f"{where}: column {chunk.name} is not stored plainly")
