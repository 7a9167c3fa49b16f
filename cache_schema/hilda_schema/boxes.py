"""Boxes of a drive as a small file: what travels from annotations, which only stage one reads, to tasks of stage two.

    labels = read_boxes(Path("boxes.parquet"))
    labels["nuscenes/scene-0061/3e8750f331d7499e9b5123e9eb70f2e2"].centre_m        # (M, 3), LiDAR frame

One row for each annotated frame, with a list of its boxes: a frame in which nothing stands has an empty list, one that
nobody annotated has no row. Frames are named by the cache's keys; geometry is in the frame's own LiDAR frame. Stored
plainly, like `frames.parquet`: a hostile file is no larger in memory than on disk, and every value is checked.

Legend: F frames, M boxes of a frame.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from hilda_schema.durable import write_atomically
from hilda_schema.errors import CacheCorrupt, HildaError, LabelError
from hilda_schema.footer import column_chunks
from hilda_schema.keys import Key
from hilda_schema.manifest import Strict, canonical_json, parse_json, sha256_hex
from hilda_schema.table import table_bytes

SCHEMA_VERSION = "1.0"
MAX_FILE_BYTES = 4 << 30  # nuScenes' 1.2 million boxes take 300 MB
MAX_CENTRE_M = 10_000.0
MAX_SIZE_M = 500.0
MAX_SPEED_MPS = 200.0
UNIT_TOLERANCE = 1e-3  # of a quaternion's norm

_ABOUT = b"hilda"
_NUMBERS = {
    "centre_m": ("centre_x_m", "centre_y_m", "centre_z_m"),
    "size_m": ("length_m", "width_m", "height_m"),
    "lidar_q_box": ("lidar_qw_box", "lidar_qx_box", "lidar_qy_box", "lidar_qz_box"),
    "velocity_mps": ("velocity_x_mps", "velocity_y_mps"),
}
_TEXT = ("track", "category")
_FIELDS = [pa.field(name, pa.string(), nullable=False) for name in _TEXT]
_FIELDS += [pa.field(name, pa.float64(), nullable=False) for names in _NUMBERS.values() for name in names]
_FIELDS += [pa.field("points", pa.int64(), nullable=False)]
_BOX = pa.struct(_FIELDS)
_LIST = pa.list_(pa.field("element", _BOX, nullable=False))
SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("boxes", _LIST, nullable=False)])
_REMEDY = "write it again with hilda-cache labels"


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Boxes of one frame, in its LiDAR frame at the sweep's stamp."""

    centre_m: NDArray[np.float64]  # (M, 3)
    size_m: NDArray[np.float64]  # (M, 3) length (along the box's x, its front), width, height
    lidar_q_box: NDArray[np.float64]  # (M, 4) unit quaternion w, x, y, z; takes the box's axes to the LiDAR's
    velocity_mps: NDArray[np.float64]  # (M, 2) x and y, over ground; NaN where it is not known
    points: NDArray[np.int64]  # (M,) LiDAR points inside, as the publisher counts them where he does
    category: NDArray[np.object_]  # (M,) str, the dataset's own name
    track: NDArray[np.object_]  # (M,) str, the same object in all frames of its scene

    def __len__(self) -> int:
        return len(self.centre_m)

    def take(self, rows: slice | NDArray[Any]) -> Boxes:
        """Some of the boxes: a slice of them, (K,) int64 rows or a (M,) mask."""
        return Boxes(**{name: getattr(self, name)[rows] for name in self.__slots__})

    @property
    def lidar_SE3_box(self) -> NDArray[np.float64]:
        """(M, 4, 4) takes points of a box, its centre the origin, to the LiDAR frame."""
        w, x, y, z = (self.lidar_q_box / np.linalg.norm(self.lidar_q_box, axis=1, keepdims=True)).T
        pose = np.zeros((len(self), 4, 4))
        pose[:, 0, :3] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], axis=1)
        pose[:, 1, :3] = np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], axis=1)
        pose[:, 2, :3] = np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=1)
        pose[:, :3, 3], pose[:, 3, 3] = self.centre_m, 1
        return pose

    @property
    def yaw_rad(self) -> NDArray[np.float64]:
        """(M,) direction of the box's front in the LiDAR's x-y plane."""
        front = self.lidar_SE3_box[:, :2, 0]
        return np.arctan2(front[:, 1], front[:, 0])


def points_inside(
    xyz_m: NDArray[np.floating], boxes: Boxes, margin_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Iterator[NDArray[np.intp]]:
    """Which points each box holds.

    Args:
        xyz_m: (N, 3) in the boxes' LiDAR frame.
        boxes: M of them.
        margin_m: by how much length, width and height are larger than written.

    Yields:
        For each box the ascending rows of the points inside or on its faces.
    """
    half_m = (boxes.size_m + margin_m) / 2
    poses, reach_m = boxes.lidar_SE3_box, np.linalg.norm(half_m, axis=1)
    x, y = xyz_m[:, 0], xyz_m[:, 1]
    for pose, half, reach in zip(poses, half_m, reach_m, strict=True):
        near = np.flatnonzero((np.abs(x - pose[0, 3]) <= reach) & (np.abs(y - pose[1, 3]) <= reach))
        local = (xyz_m[near].astype(np.float64) - pose[:3, 3]) @ pose[:3, :3]
        yield near[(np.abs(local) <= half).all(axis=1)]


class BoxesInfo(Strict):
    """Where the boxes are from."""

    encoding_type: str = "boxes"
    schema_version: str = SCHEMA_VERSION
    dataset: str
    version: str = ""
    options: dict[str, str] = Field(default_factory=dict)
    """The reader's, as in the cache's manifest."""
    written_by: str
    """Program and version."""


@dataclass(frozen=True, slots=True, eq=False)
class BoxLabels:
    """A file of boxes, read and checked."""

    about: BoxesInfo
    sha256: str  # of the file
    _all: Boxes
    _edges: dict[str, tuple[int, int]]

    def __len__(self) -> int:
        return len(self._edges)

    def __iter__(self) -> Iterator[str]:
        return iter(self._edges)

    def __contains__(self, key: object) -> bool:
        return str(key) in self._edges

    def __getitem__(self, key: Key | str) -> Boxes:
        """Boxes of one frame.

        Raises:
            LabelError: the frame is not annotated.
        """
        if str(key) not in self._edges:
            raise LabelError(f"the label file has no frame {key}", "write it from the drive that the cache was made of")
        return self._all.take(slice(*self._edges[str(key)]))


def write_boxes(path: Path, frames: Iterable[tuple[Key, Boxes]], about: BoxesInfo) -> None:
    """Write a file, all or nothing; the same boxes give the same bytes.

    Args:
        path: a Parquet file; replaced where it is there.
        frames: annotated frames in the order of their rows.
        about: where they are from.

    Raises:
        LabelError: a value that `read_boxes` would refuse, or the file cannot be written.
    """
    rows = list(frames)
    table = _table([str(key) for key, _ in rows], [boxes for _, boxes in rows], about)
    data = table_bytes(table)
    parse_boxes(data, str(path))
    try:
        write_atomically(path, data)
    except OSError as error:
        raise LabelError(f"cannot write {path}: {error.strerror}", "choose another --out") from None


def _table(keys: list[str], boxes: list[Boxes], about: BoxesInfo) -> pa.Table:
    def joined(name: str, column: int | None = None) -> Any:
        parts = [getattr(each, name) if column is None else getattr(each, name)[:, column] for each in boxes]
        return np.concatenate(parts) if parts else np.zeros(0)

    columns = [pa.array(list(joined(name)), pa.string()) for name in _TEXT]
    columns += [pa.array(joined(name, k), pa.float64()) for name, names in _NUMBERS.items() for k in range(len(names))]
    columns += [pa.array(joined("points").astype(np.int64), pa.int64())]
    edges = pa.array(np.cumsum([0] + [len(each) for each in boxes]).astype(np.int32))
    lists = pa.ListArray.from_arrays(edges, pa.StructArray.from_arrays(columns, fields=_FIELDS), type=_LIST)
    metadata = {_ABOUT: canonical_json(about.model_dump(mode="json"))}
    return pa.Table.from_arrays([pa.array(keys, pa.string()), lists], schema=SCHEMA.with_metadata(metadata))


def read_boxes(path: Path) -> BoxLabels:
    """Read a file that a stranger may have written.

    Raises:
        LabelError: it is not there, no such file, of a newer format, or holds a value that cannot be.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise LabelError(f"cannot read {path}: {error.strerror}", "give a file of hilda-cache labels") from None
    if len(data) > MAX_FILE_BYTES:
        raise LabelError(f"{path} is larger than {MAX_FILE_BYTES >> 30} GiB")
    return parse_boxes(data, str(path))


def parse_boxes(data: bytes, where: str) -> BoxLabels:
    """Read a file's bytes; see `read_boxes`."""
    try:
        _check_bounds(data, where)
        # As for frames.parquet: no thread of Arrow's that a short process would end before.
        file = pq.ParquetFile(io.BytesIO(data), pre_buffer=False)
        about = _about(file.schema_arrow, where)
        table = file.read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise LabelError(f"{where} is not a Parquet file: {str(error).splitlines()[0][:200]}", _REMEDY) from None
    lists = table["boxes"].combine_chunks()
    boxes = _boxes(lists.flatten())
    counts = np.asarray(lists.value_lengths(), dtype=np.int64)
    edges = [0, *np.cumsum(counts).tolist()]
    keys = table["key"].to_pylist()
    labels = BoxLabels(about, sha256_hex(data), boxes, {key: (edges[k], edges[k + 1]) for k, key in enumerate(keys)})
    _check(labels, keys, np.repeat(np.arange(len(keys)), counts), where)
    return labels


def _about(schema: pa.Schema, where: str) -> BoxesInfo:
    raw = (schema.metadata or {}).get(_ABOUT)
    if raw is None:
        raise LabelError(f"{where} does not say what it is: its metadata has no {_ABOUT.decode()!r}", _REMEDY)
    try:
        value = parse_json(raw, where)
        version = value.get("schema_version") if isinstance(value, dict) else None
        if version != SCHEMA_VERSION:
            raise LabelError(f"{where} has schema {str(version)[:20]!r}, not {SCHEMA_VERSION}", "update hilda-lidar")
        about = BoxesInfo.model_validate(value)
    except (CacheCorrupt, ValidationError) as error:
        raise LabelError(f"{where}: its metadata is damaged: {str(error).splitlines()[0][:200]}", _REMEDY) from None
    if about.encoding_type != "boxes":
        raise LabelError(f"{where} holds {about.encoding_type[:40]!r}, not boxes", _REMEDY)
    if not schema.equals(SCHEMA):
        raise LabelError(f"{where} does not have the columns of a file of boxes", _REMEDY)
    return about


def _check_bounds(data: bytes, where: str) -> None:
    for chunk in column_chunks(data):
        # A value takes four bytes or more, an empty list none: there are no more of those than rows, which have a key.
        if not chunk.fits(len(data) // 2, len(data)):
            raise LabelError(f"{where}: column {chunk.name} is not stored plainly", _REMEDY)


def _boxes(flat: pa.StructArray) -> Boxes:
    numbers = {
        name: np.stack([flat.field(column).to_numpy() for column in columns], axis=1)
        for name, columns in _NUMBERS.items()
    }
    track, category = (_text(flat.field(name)) for name in _TEXT)
    return Boxes(**numbers, points=flat.field("points").to_numpy(), category=category, track=track)


def _text(column: pa.Array) -> NDArray[np.object_]:
    """Equal names are one object: a million tracks and categories are few."""
    coded = column.dictionary_encode()
    names = np.array(coded.dictionary.to_pylist(), dtype=object)
    return names[coded.indices.to_numpy()] if len(names) else np.zeros(0, dtype=object)


def _check(labels: BoxLabels, keys: list[str], row: NDArray[np.int64], where: str) -> None:
    """Refuse values that cannot be, naming the frame."""
    for key in keys:
        try:
            fields = Key.parse(key)
        except HildaError as error:
            raise LabelError(f"{where}: {error.message[:200]}", _REMEDY) from None
        if not fields.frame or fields.camera or str(fields) != key or fields.drive != labels.about.dataset:
            raise LabelError(f"{where}: {key[:200]!r} is not the key of a frame of {labels.about.dataset}", _REMEDY)
    if len(labels) != len(keys):
        raise LabelError(f"{where} has a frame twice", _REMEDY)
    boxes = labels._all
    speed = np.abs(boxes.velocity_mps)
    known = ~np.isnan(speed)
    tracks = list(zip(row.tolist(), boxes.track, strict=True))
    length = np.linalg.norm(np.clip(boxes.lidar_q_box, -2, 2), axis=1)  # clipped: squares of random bytes overflow
    wrong = {
        "a centre that is not near the LiDAR": ~(np.abs(boxes.centre_m) <= MAX_CENTRE_M).all(axis=1),
        "a size that nothing has": ~((boxes.size_m > 0) & (boxes.size_m <= MAX_SIZE_M)).all(axis=1),
        "no unit quaternion": ~(np.abs(length - 1) <= UNIT_TOLERANCE),
        "a velocity that nothing has": (known & ~(speed <= MAX_SPEED_MPS)).any(axis=1) | (known[:, 0] != known[:, 1]),
        "a negative count of points": boxes.points < 0,
        "no category or track": np.array([not a or not b for a, b in zip(boxes.category, boxes.track, strict=True)]),
        "a track that it holds already": _repeated(tracks),
    }
    for what, bad in wrong.items():
        if bad.any():
            raise LabelError(f"{where}: frame {keys[row[int(np.argmax(bad))]]} has a box with {what}", _REMEDY)


def _repeated(items: list[tuple[int, Any]]) -> NDArray[np.bool_]:
    seen: set[tuple[int, Any]] = set()
    repeated = np.zeros(len(items), np.bool_)
    for k, item in enumerate(items):
        repeated[k] = item in seen
        seen.add(item)
    return repeated
