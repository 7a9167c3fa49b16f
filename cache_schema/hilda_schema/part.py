"""A sealed part, opened: checked once, then read by rows.

On first touch everything small is checked against the seal (and the seal against the manifest): the recipe's arrays and
no others, every file's size, every `zarr.json`. The bytes of features are checked as they are read, chunk by chunk.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_schema.buffers import BUFFERS
from hilda_schema.errors import CacheCorrupt, CacheError, UsageError
from hilda_schema.keys import Key
from hilda_schema.layout import (
    LIDAR,
    POINT_COLUMNS,
    ArraySpec,
    PartSizes,
    group_metadata,
    groups_of,
    part_arrays,
    part_metadata,
)
from hilda_schema.manifest import CameraSize, FileSeal, FrameRow, PartEntry, Recipe, Seal, sha256_hex
from hilda_schema.shard import CRC_BYTES, damaged_chunks, index_bytes, shard_bytes, span_buffers
from hilda_schema.storage import Storage

SEAL = "seal.json"
SEAL_LIMIT = 2**26  # 64 MiB: a thousand frames with a thousand sensor files each
METADATA_LIMIT = 2**20


def read_seal(storage: Storage, part: str) -> tuple[Seal, str, int]:
    """A part's seal, the sha256 of its file and the file's size.

    Raises:
        FileNotFoundError: the part is not there or not finished.
        CacheCorrupt: the seal is damaged or belongs to another part.
    """
    for _ in range(storage.tries - 1):
        with suppress(CacheCorrupt):
            return _read_seal(storage, part)
    return _read_seal(storage, part)


def _read_seal(storage: Storage, part: str) -> tuple[Seal, str, int]:
    data = storage.read(f"parts/{part}/{SEAL}", SEAL_LIMIT)
    where = f"{storage.name}/parts/{part}/{SEAL}"
    seal = Seal.from_bytes(data, where)
    if seal.part != part:
        raise CacheCorrupt(f"{where} belongs to part {seal.part}")
    return seal, sha256_hex(data), len(data)


def entry_of(seal: Seal, seal_sha256: str, seal_bytes: int) -> PartEntry:
    """A part as the manifest lists it."""
    return PartEntry(
        part=seal.part,
        scene=seal.scene,
        frames=len(seal.frames),
        bytes=seal_bytes + sum(file.size for file in seal.files.values()),
        seal_sha256=seal_sha256,
    )


def arrays_of(seal: Seal, recipe: Recipe) -> dict[str, ArraySpec]:
    """The arrays that a part of this recipe, with these frames, has."""
    optional = {column.name for column in POINT_COLUMNS if column.optional}
    sizes = PartSizes(
        frames=len(seal.frames),
        points=sum(frame.points for frame in seal.frames),
        pairs=sum(frame.pairs for frame in seal.frames),
        point_columns=frozenset(name for name in optional if f"points/{name}/zarr.json" in seal.files),
    )
    return part_arrays(recipe, sizes)


def metadata_files(arrays: dict[str, ArraySpec], recipe: Recipe) -> dict[str, bytes]:
    """Every `zarr.json` of a part, by path: they follow from its arrays."""
    files = {"zarr.json": part_metadata(recipe)}
    files |= {f"{group}/zarr.json": group_metadata() for group in groups_of(arrays) if group}
    files |= {spec.metadata_path: spec.metadata() for spec in arrays.values()}
    return files


def write_metadata(folder: Path, arrays: dict[str, ArraySpec], recipe: Recipe) -> dict[str, FileSeal]:
    """Write every `zarr.json` of a part, and make the folders of its arrays; path -> what the seal says of it."""
    files = {}
    for path, data in metadata_files(arrays, recipe).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        files[path] = FileSeal(size=len(data), sha256=sha256_hex(data))
    return files


def check_seal(seal: Seal, arrays: dict[str, ArraySpec], recipe: Recipe, where: str) -> None:
    """Refuse a seal that does not describe a part of this recipe.

    Raises:
        CacheCorrupt: naming what differs.
    """
    if seal.recipe_digest != recipe.digest():
        raise CacheCorrupt(f"{where} was made with another recipe than the store")
    if seal.schema_version != recipe.schema_version:
        raise CacheCorrupt(f"{where} has schema {seal.schema_version}, its recipe {recipe.schema_version}")
    if tuple(camera.name for camera in seal.cameras) != recipe.dataset.cameras:
        raise CacheCorrupt(f"{where} has other cameras than the store")
    _check_frames(seal, recipe, where)
    if seal.encoding_error.keys() != {f"{each.name}/{layer.name}" for each in recipe.teachers for layer in each.layers}:
        raise CacheCorrupt(f"{where} does not say the encoding error of exactly the recipe's layers")
    expected = metadata_files(arrays, recipe)
    shards = {spec.shard_path: spec for spec in arrays.values() if spec.chunks}
    if odd := sorted(seal.files.keys() ^ (expected.keys() | shards.keys())):
        raise CacheCorrupt(f"{where} and the recipe disagree about {odd[0]}")
    for path, data in expected.items():
        if seal.files[path].sha256 != sha256_hex(data) or seal.files[path].size != len(data):
            raise CacheCorrupt(f"{where}: {path} is not what the recipe makes it")
    for path, spec in shards.items():
        crcs = seal.files[path].chunk_crc32c
        if seal.files[path].size != shard_bytes(spec) or crcs is None or len(crcs) != spec.chunks:
            raise CacheCorrupt(f"{where}: {path} does not have the size of its array")


def _check_frames(seal: Seal, recipe: Recipe, where: str) -> None:
    if len({frame.key for frame in seal.frames}) != len(seal.frames):
        raise CacheCorrupt(f"{where} names a frame twice")
    if any(after.stamp_ns < before.stamp_ns for before, after in pairwise(seal.frames)):
        raise CacheCorrupt(f"{where}: its frames are not in the order of time")
    for frame in seal.frames:
        if strange := sorted(frame.absent.keys() - {LIDAR, *recipe.dataset.cameras}):
            raise CacheCorrupt(f"{where}: {strange[0][:200]!r} is absent, but no camera of the store")
        try:
            key = Key.parse(frame.key)
        except UsageError as error:
            raise CacheCorrupt(f"{where}: {error.message}") from None
        if key.scene != seal.scene or str(key) != frame.key or not key.frame or key.camera:
            raise CacheCorrupt(f"{where}: {frame.key[:200]!r} is not a frame of scene {seal.scene[:200]!r}")


def check_files(storage: Storage, seal: Seal) -> None:
    """Refuse a part whose files are not those of its seal, by name, size and (where small) content.

    Behind a URL names and sizes are not looked at: a listing may be old, and every read checks what it reads.

    Raises:
        CacheCorrupt: naming the file.
    """
    folder = f"{storage.name}/parts/{seal.part}"
    try:
        if storage.listed:
            _check_listing(storage.sizes(f"parts/{seal.part}"), seal, folder)
        small = [path for path in seal.files if path.endswith("zarr.json")]
        contents = storage.read_many([f"parts/{seal.part}/{path}" for path in small], METADATA_LIMIT)
    except FileNotFoundError as error:
        raise CacheCorrupt(f"{error.filename or folder} is missing") from None
    for path, data in zip(small, contents, strict=True):
        if sha256_hex(data) != seal.files[path].sha256:
            raise CacheCorrupt(f"{folder}/{path} is not what was sealed")


def _check_listing(found: dict[str, int], seal: Seal, folder: str) -> None:
    found.pop(SEAL, None)
    if missing := sorted(seal.files.keys() - found.keys()):
        raise CacheCorrupt(f"{folder}/{missing[0]} is missing")
    if extra := sorted(found.keys() - seal.files.keys()):
        raise CacheCorrupt(f"{folder}/{extra[0]} is not part of the cache")
    for path, file in seal.files.items():
        if found[path] != file.size:
            raise CacheCorrupt(f"{folder}/{path} is {found[path]} bytes, {file.size} were sealed")


@dataclass(frozen=True, slots=True, eq=False)
class _Shard:
    """An array whose index was checked, and what each read of it needs, worked out once."""

    spec: ArraySpec
    path: str  # below the store
    file: FileSeal
    sealed: tuple[int, ...]  # checksum of every chunk
    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stride: int  # bytes from one chunk to the next


@dataclass(slots=True, eq=False)
class OpenPart:
    """A part that passed the checks of first touch. Threads may share it."""

    storage: Storage
    part: str
    frames: tuple[FrameRow, ...]
    cameras: tuple[CameraSize, ...]
    arrays: dict[str, ArraySpec]
    shards: dict[str, FileSeal]  # array path -> its shard
    _whole: dict[str, NDArray[Any]] = field(default_factory=dict)  # small arrays, kept
    _checked: dict[str, _Shard] = field(default_factory=dict)  # arrays whose shard index was checked

    def read_whole(self, path: str) -> NDArray[Any]:
        """A small array (offsets, presence, channel statistics), shaped as its spec says; read once, read-only.

        Raises:
            CacheCorrupt: naming the file.
        """
        if path not in self._whole:
            array = self.read_rows(path, 0, self.arrays[path].shape[0])
            array.flags.writeable = False
            self._whole[path] = array
        return self._whole[path]

    def edges(self, ragged: str, row: int) -> tuple[int, int]:
        """Rows [start, stop) of one frame in the ragged arrays "points" or "pairs".

        Raises:
            CacheCorrupt: the offsets are damaged, or are not the seal's counts.
        """
        offset = self.read_whole(f"{ragged}/offset")
        start, stop = int(offset[row]), int(offset[row + 1])
        *before, count = (getattr(frame, ragged) for frame in self.frames[: row + 1])
        if (start, stop) != (sum(before), sum(before) + count):
            raise self._damaged(f"{ragged}/offset", row, f"gives rows {start} to {stop}, the seal others")
        return start, stop

    def read_rows(self, path: str, start: int, stop: int, row: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) of an array, checked.

        Args:
            path: the array.
            start: first row.
            stop: one past the last.
            row: the frame they belong to, for the message.

        Returns:
            (stop - start, ...) in the array's dtype.

        Raises:
            CacheCorrupt: naming file and frame.
        """
        spec = self.arrays[path]
        if not 0 <= start <= stop <= spec.shape[0]:
            raise self._damaged(path, row, f"has {spec.shape[0]} rows, the offsets say {start} to {stop}")
        if start == stop:
            return np.empty((0, *spec.shape[1:]), spec.dtype)
        shard = self._checked.get(path) or self._check_index(spec, row)
        first, last = start // spec.chunk_rows, -(-stop // spec.chunk_rows)
        chunks = BUFFERS.empty((last - first, *shard.chunk_shape), shard.dtype)
        self._read_chunks(shard, first, chunks, row)
        rows = chunks.reshape(-1, *spec.shape[1:])
        return rows[start - first * spec.chunk_rows : stop - first * spec.chunk_rows]

    def _read_chunks(self, shard: _Shard, first: int, chunks: NDArray[Any], row: int | None) -> None:
        stored = np.empty(len(chunks), "<u4")
        buffers = span_buffers(chunks, stored)
        for attempt in range(self.storage.tries):
            try:
                self.storage.read_chunks(shard.path, shard.file, shard.stride, first, buffers, again=attempt > 0)
            except CacheError as error:
                if isinstance(error, CacheCorrupt) and attempt + 1 < self.storage.tries:
                    continue
                raise self._unread(error, row) from None
            damaged = damaged_chunks(chunks, stored, shard.sealed[first : first + len(chunks)])
            if not damaged:
                return
        raise self._damaged(shard.spec.shard_path, row, f"chunk {first + damaged[0]} is not what was sealed")

    def _check_index(self, spec: ArraySpec, row: int | None) -> _Shard:
        path, file, stride = (
            f"parts/{self.part}/{spec.shard_path}",
            self.shards[spec.path],
            spec.chunk_bytes + CRC_BYTES,
        )
        expected = index_bytes(spec)
        found = bytearray(len(expected))
        for attempt in range(self.storage.tries):
            try:
                self.storage.read_into(path, spec.chunks * stride, [memoryview(found)])
            except CacheError as error:
                if isinstance(error, CacheCorrupt) and attempt + 1 < self.storage.tries:
                    continue
                raise self._unread(error, row) from None
            if found == expected:
                crcs, dtype = file.chunk_crc32c or (), np.dtype(spec.dtype)
                shard = _Shard(spec, path, file, crcs, spec.chunk_shape, dtype, stride)
                self._checked[spec.path] = shard
                return shard
        raise self._damaged(spec.shard_path, row, "its index is not what was sealed")

    def _unread(self, error: CacheError, row: int | None) -> CacheError:
        """What kept bytes from being read, with the frame that needs them."""
        return type(error)(f"{error.message}{self._of_frame(row)}", error.remedy or self._remedy())

    def _damaged(self, path: str, row: int | None, what: str) -> CacheCorrupt:
        name = f"{self.storage.name}/parts/{self.part}/{path}"
        return CacheCorrupt(f"{name}{self._of_frame(row)}: {what}", self._remedy())

    def _of_frame(self, row: int | None) -> str:
        return f" (frame {self.frames[row].key})" if row is not None else f" (frames from {self.frames[0].key})"

    def _remedy(self) -> str:
        return verify_command(self.storage)


def verify_command(storage: Storage) -> str:
    """The next thing to do about damage."""
    return f"see all damage with: hilda-cache verify {storage.name}"


def open_part(
    storage: Storage, part: str, recipe: Recipe, seal_sha256: str | None = None
) -> tuple[OpenPart, PartEntry]:
    """Open a part after the checks of first touch.

    Args:
        storage: the store.
        part: the part's id.
        recipe: the store's recipe.
        seal_sha256: what the manifest says of the seal; None where there is no manifest to say it yet.

    Raises:
        CacheCorrupt: the part is not what was sealed.
    """
    for _ in range(storage.tries - 1):
        with suppress(CacheCorrupt):
            return _open_part(storage, part, recipe, seal_sha256)
    return _open_part(storage, part, recipe, seal_sha256)


def _open_part(
    storage: Storage, part: str, recipe: Recipe, seal_sha256: str | None = None
) -> tuple[OpenPart, PartEntry]:
    where = f"{storage.name}/parts/{part}"
    try:
        seal, found_sha256, seal_bytes = read_seal(storage, part)
        if seal_sha256 not in (None, found_sha256):
            raise CacheCorrupt(f"{where}/{SEAL} is not the one that the manifest lists")
        arrays = arrays_of(seal, recipe)
        check_seal(seal, arrays, recipe, f"{where}/{SEAL}")
        check_files(storage, seal)
    except FileNotFoundError:
        raise CacheCorrupt(f"{where}/{SEAL} is missing", verify_command(storage)) from None
    except CacheCorrupt as error:
        raise CacheCorrupt(error.message, error.remedy or verify_command(storage)) from None
    shards = {spec.path: seal.files[spec.shard_path] for spec in arrays.values() if spec.chunks}
    opened = OpenPart(storage, part, seal.frames, seal.cameras, arrays, shards)
    return opened, entry_of(seal, found_sha256, seal_bytes)
