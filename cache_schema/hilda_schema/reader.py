"""Opening a cache: frames, points, pairs and features, whatever lies on disk.

    cache = open_cache("features/nuscenes")
    frame = cache[0]
    frame.points.xyz_m                                   # (N, 3)
    frame.pairs.uv_px                                    # (P, 2)
    frame.point_features("dinov2", layer=12)             # (P, C)

Opening reads the manifest and the table of frames; a part is opened, and checked, when a frame of it is first read. A
`Cache` may be shared by threads, forked, or sent to another process, which opens the store again by itself. Opening
runs no code from the store: nothing is unpickled, no path leaves the store, no size is believed before it is checked.

Legend: N points, P pairs, V cameras, H x W token grid, C channels, D width of the global token.
"""

from __future__ import annotations

import difflib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hilda_schema.content import Pairs
from hilda_schema.encoding import ChannelStatistics, decode_float16, decode_int8, dequantise_uv, pixels_of_uv
from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheIncomplete, NotInCache, UsageError
from hilda_schema.keys import Key
from hilda_schema.layout import POINT_COLUMNS, layer_path
from hilda_schema.manifest import LayerInfo, Manifest, PartEntry, Seal, TeacherInfo, key_digests
from hilda_schema.part import OpenPart, entry_of, open_part, read_seal, verify_command
from hilda_schema.part_cache import keeping_blocks
from hilda_schema.reduction import basis_sha256
from hilda_schema.root import load_root, unfinished_remedy
from hilda_schema.sampling import Mode, sample_grid
from hilda_schema.storage import Storage, open_storage, pinned
from hilda_schema.table import frames_table, reading_order

OPEN_PARTS = 2048
"""Parts whose seal is kept in memory, some 20 kB each."""


def open_cache(url: str | os.PathLike[str], *, allow_partial: bool = False, visible_only: bool = False) -> Cache:
    """Open a cache for reading.

    Args:
        url: a folder, or a URL that fsspec knows (`s3://...`, `memory://...`). `URL@sha256:` and the root hash, or at
            least its first 12 digits, opens the store with that content only. What is read from a URL is kept here,
            bounded, for the next time: see `hilda_schema.part_cache`.
        allow_partial: also open a store whose extraction has not finished, with the parts that are there.
        visible_only: leave out pairs whose point is hidden from the camera by a nearer one.

    Raises:
        CacheNotFound: there is no store.
        CacheIncomplete: its extraction has not finished, and `allow_partial` is not set.
        CacheVersion: a newer program wrote it.
        CacheCorrupt: its root is damaged.
        CacheConflict: it is not the store that the URL pins.
    """
    return Cache(keeping_blocks(open_storage(url)), allow_partial=allow_partial, visible_only=visible_only)


@dataclass(frozen=True, slots=True, eq=False)
class PointArrays:
    """A frame's points; an optional column that the dataset lacks is None."""

    xyz_m: NDArray[np.float32]  # (N, 3) LiDAR frame
    intensity: NDArray[np.float32]  # (N,) in the dataset's own scale
    ground: NDArray[np.bool_]  # (N,)
    time_offset_ns: NDArray[np.int32] | None = None  # (N,) from the frame's stamp
    ring: NDArray[np.uint8] | None = None  # (N,) laser index
    label: NDArray[np.uint16] | None = None  # (N,) the dataset's own class ids

    def __len__(self) -> int:
        return len(self.xyz_m)


@dataclass(frozen=True, slots=True, eq=False)
class StoredTokens:
    """A layer of one frame as it lies on disk, for a caller that decodes on another device.

    float16: features are `values`. int8: features are `values * scale[..., None] * channel_scale + channel_mean`.
    """

    values: NDArray[np.float16] | NDArray[np.int8]  # grid: (V, H, W, C), absent cameras NaN or -128; point: (P, C)
    scale: NDArray[np.float16] | None  # int8: (V, H, W), NaN for absent cameras; or (P,)
    channel_mean: NDArray[np.float32] | None  # int8: (C,)
    channel_scale: NDArray[np.float32] | None  # int8: (C,)


class Cache:
    """An open cache: a sequence of `Frame`. Use `open_cache`."""

    def __init__(self, storage: Storage, *, allow_partial: bool, visible_only: bool) -> None:
        self._storage = storage
        self._allow_partial = allow_partial
        self.visible_only = visible_only
        self.manifest: Manifest
        self.manifest, table = load_root(storage)
        if table is not None:
            self.frames: pa.Table = table
            self.parts: tuple[PartEntry, ...] = self.manifest.parts
        else:
            found = self._sealed_parts()
            self.frames = frames_table(found)
            self.parts = tuple(entry for _, entry in found)
        self._row = self.frames["row"].to_numpy()
        self._part, self._key = self.frames["part"], self.frames["key"]
        self._seals = {entry.part: entry.seal_sha256 for entry in self.parts}
        self._parts = _RecentParts()

    def _sealed_parts(self) -> list[tuple[Seal, PartEntry]]:
        """The parts of an unfinished store, in reading order."""
        storage, manifest = self._storage, self.manifest
        names = [name for name in storage.folders("parts") if not name.startswith(".")]
        gone = {digest for each in manifest.forgotten for digest in each.frames}  # while it is being removed
        found = []
        for name in names:
            try:
                seal, seal_sha256, size = read_seal(storage, name)
            except FileNotFoundError:
                continue
            if seal.recipe_digest == manifest.recipe.digest() and not (gone and gone & key_digests(seal)):
                found.append((seal, entry_of(seal, seal_sha256, size)))
        if not self._allow_partial:
            raise CacheIncomplete(
                f"{storage.name} has {len(found)} of {manifest.planned_parts} parts",
                unfinished_remedy(storage, manifest),
            )
        return reading_order(found)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "storage": self._storage,
            "allow_partial": self._allow_partial,
            "visible_only": self.visible_only,
            "root_sha256": self.manifest.root_sha256,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        root_sha256 = state.pop("root_sha256")
        Cache.__init__(self, **state)
        if self.manifest.root_sha256 != root_sha256:
            raise CacheConflict(
                f"{self._storage.name} changed while it was in use", "start again with the store as it is now"
            )

    def __len__(self) -> int:
        return int(self.frames.num_rows)

    def __getitem__(self, index: int) -> Frame:
        """One frame; negative indices count from the end.

        Raises:
            IndexError: there is no such row (so that the cache can be iterated).
            CacheCorrupt: its part is not what was sealed.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"{self._storage.name} has {count} frames, there is no frame {index}")
        index = int(index) % count
        part, row, key = self._part[index].as_py(), int(self._row[index]), self._key[index].as_py()
        opened = self._parts.get(part) or self._open(part)
        if not 0 <= row < len(opened.frames) or opened.frames[row].key != key:
            raise CacheCorrupt(
                f"{self._storage.name}/frames.parquet: frame {key} is not row {row} of part {part}",
                verify_command(self._storage),
            )
        return Frame(self, index, opened, row)

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def _open(self, part: str) -> OpenPart:
        if part not in self._seals:
            raise CacheCorrupt(
                f"{self._storage.name}/frames.parquet names part {part}, which the manifest does not list",
                verify_command(self._storage),
            )
        opened, _ = open_part(self._storage, part, self.manifest.recipe, self._seals[part])
        self._parts.put(opened)
        return opened

    @property
    def url(self) -> str:
        """Where the store lies, without secrets."""
        return self._storage.name

    @property
    def pinned_url(self) -> str:
        """Where the store lies, without secrets, and its content: what to paste where exactly this is meant.

        Empty while the store is partial.
        """
        return pinned(self.url, self.manifest.root_sha256) if self.manifest.root_sha256 else ""

    @property
    def teachers(self) -> dict[str, TeacherInfo]:
        """The stored teachers by name."""
        return {teacher.name: teacher for teacher in self.manifest.recipe.teachers}

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Stored cameras, in the order of every camera axis."""
        return self.manifest.recipe.dataset.cameras

    def layer_info(self, teacher: str, layer: str | int) -> LayerInfo:
        """Shape of a stored layer.

        Raises:
            NotInCache: naming what is stored, and the nearest name.
        """
        teachers = self.teachers
        if teacher not in teachers:
            raise NotInCache(f"{self.url} has no teacher {teacher!r}", _it_has(teacher, teachers))
        if (info := teachers[teacher].layer(layer)) is None:
            names = [each.name for each in teachers[teacher].layers]
            raise NotInCache(f"{self.url} has no layer {layer} of {teacher}", _it_has(str(layer), names))
        return info

    def basis(self, teacher: str, layer: str | int) -> NDArray[np.float32] | None:
        """What a layer's stored channels are in the model's: `features @ basis` lifts (P, K) features to (P, C).

        Returns:
            (K, C) orthonormal rows; None where the channels are the model's own.

        Raises:
            NotInCache: teacher or layer is not stored, or there is no part yet to hold it.
            CacheCorrupt: it is not the one that the manifest names.
        """
        reduction = self.layer_info(teacher, layer).reduction
        if reduction is None:
            return None
        if not self.parts:
            raise NotInCache(f"{self.url} has no part yet, so no basis of {teacher}/{layer}")
        part = self.parts[0].part
        path = f"{layer_path(teacher, str(layer))}/basis"
        basis: NDArray[np.float32] = (self._parts.get(part) or self._open(part)).read_whole(path)
        if basis_sha256(basis) != reduction.basis_sha256:
            raise CacheCorrupt(f"{self.url}/parts/{part}/{path} is not the one that the manifest names")
        return basis

    def find(self, key: Key | str) -> Frame:
        """The frame of that key.

        Raises:
            NotInCache: it is not stored, naming the nearest key.
        """
        keys = self.frames["key"].to_pylist()
        if str(key) not in keys:
            raise NotInCache(f"{self.url} has no frame {key}", _it_has(str(key), keys))
        return self[keys.index(str(key))]


@dataclass(slots=True, eq=False)
class Frame:
    """One frame of a cache. Nothing is read before it is asked for."""

    cache: Cache
    index: int  # row in `cache.frames`
    _part: OpenPart
    _row: int
    _points: PointArrays | None = field(default=None, repr=False)
    _pairs: tuple[Pairs, NDArray[np.float64], NDArray[np.intp] | None] | None = field(default=None, repr=False)

    @property
    def key(self) -> Key:
        """Names drive, scene and frame."""
        return Key.parse(self._part.frames[self._row].key)

    @property
    def stamp_ns(self) -> int:
        """Time stamp of the sweep."""
        return self._part.frames[self._row].stamp_ns

    @property
    def world_SE3_lidar(self) -> NDArray[np.float64]:
        """(4, 4) takes LiDAR points to the scene's world."""
        return np.array(self._part.frames[self._row].world_SE3_lidar).reshape(4, 4)

    @property
    def world_SE3_ego(self) -> NDArray[np.float64]:
        """(4, 4) takes vehicle points, at the sweep's stamp, to the scene's world."""
        return np.array(self._part.frames[self._row].world_SE3_ego).reshape(4, 4)

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Stored cameras, in the order of every camera axis."""
        return tuple(camera.name for camera in self._part.cameras)

    @property
    def camera_sizes_px(self) -> dict[str, tuple[int, int]]:
        """Camera -> (width, height) of its original images; (0, 0) for one that these frames do not have."""
        return {camera.name: (camera.width_px, camera.height_px) for camera in self._part.cameras}

    @property
    def absent(self) -> dict[str, str]:
        """Camera (or "lidar") -> why its image (or sweep) is not here."""
        return dict(self._part.frames[self._row].absent)

    @property
    def present(self) -> NDArray[np.bool_]:
        """(V,) which cameras have an image."""
        if not self._part.cameras:
            return np.zeros(0, np.bool_)
        present: NDArray[np.bool_] = self._part.read_whole("present")[self._row]
        return present

    @property
    def point_columns(self) -> tuple[str, ...]:
        """Names of the columns that `points` has; tells without reading them whether there are labels."""
        return tuple(column.name for column in POINT_COLUMNS if f"points/{column.name}" in self._part.arrays)

    @property
    def points(self) -> PointArrays:
        """The sweep; read once.

        Raises:
            NotInCache: the store was made without points.
            CacheCorrupt: naming file and frame.
        """
        if not self.cache.manifest.recipe.store_points:
            raise NotInCache(
                f"{self.cache.url} was made without points", "read the sweep from the drive: frame.key names it"
            )
        if self._points is None:
            start, stop = self._part.edges("points", self._row)
            self._points = PointArrays(
                **{
                    column.name: self._read(path, start, stop)
                    for column in POINT_COLUMNS
                    if (path := f"points/{column.name}") in self._part.arrays
                }
            )
        return self._points

    @property
    def pairs(self) -> Pairs:
        """Which point is seen at which pixel of which camera; sorted by camera, then by point; read once."""
        return self._located_pairs()[0]

    def point_features(self, teacher: str, layer: str | int, mode: Mode = "bilinear") -> NDArray[np.float32]:
        """A teacher's features at every pair, whatever the encoding.

        Args:
            teacher: name of a stored teacher.
            layer: name or number of a stored layer.
            mode: "bilinear" or "nearest" token.

        Returns:
            (P, C).

        Raises:
            NotInCache: teacher or layer is not stored, or "nearest" is asked of a store of bilinear point features.
            CacheCorrupt: naming file and frame.
        """
        if mode not in ("bilinear", "nearest"):
            raise UsageError(f"mode {mode!r} is not known", "use bilinear or nearest")
        pairs, uv, kept = self._located_pairs()
        if self.cache.manifest.recipe.encoding.kind == "grid":
            return sample_grid(self.token_grid(teacher, layer), pairs.camera, uv, mode)
        self.cache.layer_info(teacher, layer)
        if mode == "nearest":
            raise NotInCache(
                f"{self.cache.url} stores bilinear samples at the pairs (encoding kind=point), no token grids",
                "use mode='bilinear', or extract with --encoding grid",
            )
        features = _decode(self._stored(teacher, layer))
        return features if kept is None else features[kept]

    def token_grid(self, teacher: str, layer: str | int) -> NDArray[np.float32]:
        """A teacher's token grids.

        Returns:
            (V, H, W, C), NaN for cameras without an image.

        Raises:
            NotInCache: teacher or layer is not stored, or the store holds point features instead of grids.
            CacheCorrupt: naming file and frame.
        """
        self.cache.layer_info(teacher, layer)
        if self.cache.manifest.recipe.encoding.kind == "point":
            raise NotInCache(
                f"{self.cache.url} stores features at the pairs (encoding kind=point), not token grids",
                "use point_features, or extract with --encoding grid",
            )
        return _decode(self._stored(teacher, layer))

    def stored_tokens(self, teacher: str, layer: str | int) -> StoredTokens:
        """A layer as it lies on disk, checked but not decoded.

        Grids come for all cameras; point features for all pairs of the store, also where `visible_only` leaves some
        out of `pairs`.

        Raises:
            NotInCache: teacher or layer is not stored.
            CacheCorrupt: naming file and frame.
        """
        self.cache.layer_info(teacher, layer)
        return self._stored(teacher, layer)

    def global_tokens(self, teacher: str) -> NDArray[np.float32]:
        """A teacher's global token of every camera.

        Returns:
            (V, D), NaN for cameras without an image.

        Raises:
            NotInCache: the teacher is not stored, or has no global token.
        """
        teachers = self.cache.teachers
        if teacher not in teachers:
            raise NotInCache(f"{self.cache.url} has no teacher {teacher!r}", _it_has(teacher, teachers))
        if not teachers[teacher].global_width:
            raise NotInCache(f"{self.cache.url}: teacher {teacher} has no global token")
        return decode_float16(self._read(f"{teacher}/global", self._row, self._row + 1)[0])

    def _read(self, path: str, start: int, stop: int) -> NDArray[Any]:
        return self._part.read_rows(path, start, stop, self._row)

    def _located_pairs(self) -> tuple[Pairs, NDArray[np.float64], NDArray[np.intp] | None]:
        """Pairs, their positions in the unit square, and which of the stored ones they are (None: all)."""
        if self._pairs is None:
            self._pairs = self._read_pairs()
        return self._pairs

    def _read_pairs(self) -> tuple[Pairs, NDArray[np.float64], NDArray[np.intp] | None]:
        start, stop = self._part.edges("pairs", self._row)
        names = ("point", "camera", "depth_m", "visible", "uv")
        stored = {name: self._read(f"pairs/{name}", start, stop) for name in names}
        kept = None
        if self.cache.visible_only:
            kept = np.flatnonzero(stored["visible"])
            stored = {name: values[kept] for name, values in stored.items()}
        uv = dequantise_uv(stored["uv"])
        sizes_px = np.array([(c.width_px, c.height_px) for c in self._part.cameras], np.int64).reshape(-1, 2)
        if len(uv) and int(stored["camera"].max()) >= len(sizes_px):
            raise CacheCorrupt(f"{self.cache.url}: frame {self.key} has a pair of a camera that is not there")
        pairs = Pairs(
            point=stored["point"],
            camera=stored["camera"],
            uv_px=pixels_of_uv(uv, sizes_px[stored["camera"]]),
            depth_m=decode_float16(stored["depth_m"]),
            visible=stored["visible"],
        )
        return pairs, uv, kept

    def _stored(self, teacher: str, layer: str | int) -> StoredTokens:
        encoding, folder = self.cache.manifest.recipe.encoding, layer_path(teacher, str(layer))

        def rows(name: str) -> NDArray[Any]:
            if encoding.kind == "grid":
                grid: NDArray[Any] = self._read(f"{folder}/{name}", self._row, self._row + 1)[0]
                return grid
            return self._read(f"{folder}/{name}", *self._part.edges("pairs", self._row))

        values = rows("tokens" if encoding.kind == "grid" else "features")
        if encoding.dtype == "float16":
            return StoredTokens(values, None, None, None)
        mean, scale = (self._part.read_whole(f"{folder}/{name}") for name in ("channel_mean", "channel_scale"))
        return StoredTokens(values, rows("scale"), mean, scale)


def _decode(stored: StoredTokens) -> NDArray[np.float32]:
    if stored.scale is None or stored.channel_mean is None or stored.channel_scale is None:
        return decode_float16(stored.values.astype(np.float16, copy=False))
    statistics = ChannelStatistics(stored.channel_mean, stored.channel_scale)
    return decode_int8(stored.values.astype(np.int8, copy=False), stored.scale, statistics)


def _it_has(asked: str, stored: Iterable[str]) -> str:
    names = list(stored)
    close = difflib.get_close_matches(asked, names[:10_000], n=1, cutoff=0.3)
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"stored are: {listed or 'none'}"


class _RecentParts:
    """Open parts, the least recently used forgotten first."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._parts: OrderedDict[str, OpenPart] = OrderedDict()

    def get(self, part: str) -> OpenPart | None:
        """A part that is open already."""
        if self._process != os.getpid():
            self._forget()  # forked: the lock may be held by a thread that does not exist here
        with self._lock:
            if part in self._parts:
                self._parts.move_to_end(part)
            return self._parts.get(part)

    def put(self, part: OpenPart) -> None:
        """Remember a part."""
        with self._lock:
            self._parts[part.part] = part
            while len(self._parts) > OPEN_PARTS:
                self._parts.popitem(last=False)
