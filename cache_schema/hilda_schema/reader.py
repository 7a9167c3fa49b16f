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

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheIncomplete, NotInCache
from hilda_schema.frame import Frame as Frame
from hilda_schema.frame import PointArrays as PointArrays
from hilda_schema.frame import StoredTokens as StoredTokens
from hilda_schema.frame import it_has
from hilda_schema.keys import Key
from hilda_schema.layout import layer_path
from hilda_schema.manifest import LayerInfo, Manifest, PartEntry, Seal, TeacherInfo, key_digests
from hilda_schema.part import OpenPart, entry_of, open_part, read_seal, verify_command
from hilda_schema.part_cache import keeping_blocks
from hilda_schema.reduction import basis_sha256
from hilda_schema.root import load_root, unfinished_remedy
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
            raise NotInCache(f"{self.url} has no teacher {teacher!r}", it_has(teacher, teachers))
        if (info := teachers[teacher].layer(layer)) is None:
            names = [each.name for each in teachers[teacher].layers]
            raise NotInCache(f"{self.url} has no layer {layer} of {teacher}", it_has(str(layer), names))
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
            raise NotInCache(f"{self.url} has no frame {key}", it_has(str(key), keys))
        return self[keys.index(str(key))]


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
