"""One frame of an open cache: its points, its pairs, and the features at them. `reader.py` opens the cache.

Nothing is read before it is asked for, and every encoding is read by the same names.

Legend: N points, P pairs, V cameras, H x W token grid, C channels, D width of the global token.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hilda_schema.content import Pairs
from hilda_schema.encoding import ChannelStatistics, decode_float16, decode_int8, dequantise_uv, pixels_of_uv
from hilda_schema.errors import CacheCorrupt, NotInCache, UsageError
from hilda_schema.keys import Key
from hilda_schema.layout import POINT_COLUMNS, layer_path
from hilda_schema.part import OpenPart
from hilda_schema.sampling import Mode, sample_grid

if TYPE_CHECKING:
    from hilda_schema.reader import Cache


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
            raise NotInCache(f"{self.cache.url} has no teacher {teacher!r}", it_has(teacher, teachers))
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


def it_has(asked: str, stored: Iterable[str]) -> str:
    """What there is instead of a name that is not stored, the nearest first: the second half of an error."""
    names = list(stored)
    close = difflib.get_close_matches(asked, names[:10_000], n=1, cutoff=0.3)
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"stored are: {listed or 'none'}"
