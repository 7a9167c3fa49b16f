"""`hilda-cache export`: a cache's features in the files of other loaders, for those who cannot read a cache.

    webdataset   OUT/data-000000.tar, ...                  one sample a frame, .npy members, metadata as .json
    datasets     OUT/data/train-00000-of-00003.parquet     one row a frame, lists in columns, for Hugging Face datasets

A row of the arrays is a point-camera pair: which point of the sweep, in which camera, where, and the features of each
teacher and layer there, in float32, as `Frame.point_features` gives them. `source.json` beside the data says which
store it was made from and has the sha256 of every file. What a cache does for its readers (checksums of chunks,
refusals, one copy of a grid that many points share) is lost, and the files are larger.

Legend: P pairs of a frame, C channels.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hilda_cache.parts import file_sha256
from hilda_schema import __version__
from hilda_schema.durable import sync, sync_tree, write_synced, writing
from hilda_schema.errors import UsageError
from hilda_schema.manifest import canonical_json
from hilda_schema.reader import Cache, Frame

SHARD_BYTES = 2**29  # a file is closed once it is so large: loaders shuffle files, and read one from its beginning
SOURCE = "source.json"

Layer = tuple[str, str]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame, ready to be written."""

    index: int  # in the export
    about: dict[str, Any]
    pairs: Arrays  # name -> (P,) or (P, n)
    features: Arrays  # "teacher.layer" -> (P, C) float32


def export(
    cache: Cache,
    target: str,
    out: Path,
    teachers: tuple[str, ...] | None = None,
    layers: tuple[str, ...] | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> list[str]:
    """Write a cache for another loader.

    Args:
        cache: complete.
        target: one of `TARGETS`.
        out: folder to make; it appears whole or not at all.
        teachers: only these; None for all.
        layers: only layers of these names; None for all.
        on_frame: called after every frame.

    Returns:
        Names of the files, relative to `out`.

    Raises:
        UsageError: an unknown target, or `out` is there.
        NotInCache: a teacher or layer is not stored.
        CacheError: the store is damaged, or `out` cannot be written.
    """
    if target not in TARGETS:
        raise UsageError(f"--to {target!r} is not known", f"use one of {', '.join(TARGETS)}")
    chosen = choose_layers(cache, teachers, layers)
    with _appearing(out) as folder:
        with TARGETS[target](folder, chosen, cache) as writer:
            for frame in cache:
                writer.add(sample_of(frame, chosen))
                on_frame()
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        write_synced(folder / SOURCE, canonical_json(_source(cache, target, chosen, folder, files)))
    return files


def choose_layers(cache: Cache, teachers: tuple[str, ...] | None, layers: tuple[str, ...] | None) -> tuple[Layer, ...]:
    """The layers to export, in the recipe's order.

    Raises:
        NotInCache: naming the nearest that is stored.
        UsageError: there is none.
    """
    names = teachers or tuple(cache.teachers)
    for name in names:
        if name not in cache.teachers:
            cache.layer_info(name, "")  # raises, naming the nearest
    found = tuple(
        (name, layer.name)
        for name, info in cache.teachers.items()
        for layer in info.layers
        if name in names and (layers is None or layer.name in layers)
    )
    for layer in layers or ():
        if layer not in {name for _, name in found}:
            cache.layer_info(names[0], layer)
    if not found:
        raise UsageError(f"{cache.url} has no layer to export")
    return found


def sample_of(frame: Frame, layers: tuple[Layer, ...]) -> Sample:
    """A frame as it is exported."""
    pairs = frame.pairs
    arrays: Arrays = {
        "point": pairs.point,
        "camera": pairs.camera,
        "uv_px": pairs.uv_px.astype(np.float32),
        "depth_m": pairs.depth_m,
        "visible": pairs.visible,
    }
    if frame.cache.manifest.recipe.store_points:
        points = frame.points
        columns = {name: getattr(points, name) for name in ("xyz_m", "intensity", "label")}
        arrays |= {name: values[pairs.point] for name, values in columns.items() if values is not None}
    about = {
        "key": str(frame.key),
        "scene": frame.key.scene,
        "frame": frame.key.frame,
        "stamp_ns": frame.stamp_ns,
        "world_SE3_lidar": frame.world_SE3_lidar.ravel().tolist(),
        "cameras": list(frame.camera_names),
        "absent": frame.absent,
    }
    features = {f"{teacher}.{layer}": frame.point_features(teacher, layer) for teacher, layer in layers}
    return Sample(frame.index, about, arrays, features)


def _source(cache: Cache, target: str, layers: tuple[Layer, ...], folder: Path, files: list[str]) -> dict[str, Any]:
    recipe = cache.manifest.recipe
    return {
        "format": target,
        "writer": f"hilda-lidar {__version__}",
        "store_root_sha256": cache.manifest.root_sha256,
        "dataset": recipe.dataset.name,
        "licences": {teacher.name: teacher.licence for teacher in recipe.teachers},
        "layers": [f"{teacher}.{layer}" for teacher, layer in layers],
        "frames": len(cache),
        "files": {name: file_sha256(folder / name) for name in files},
    }


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is complete and on disk, and is removed when it is not."""
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} is already there", "give another --out; nothing is overwritten")
    temporary = out.parent / f".tmp-{out.name}-{os.getpid()}"
    with writing(out):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            sync_tree(temporary)
            temporary.rename(out)
            sync(out.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


class Writer(ABC):
    """Writes samples to files of bounded size; a context manager."""

    def __init__(self, folder: Path, layers: tuple[Layer, ...], cache: Cache) -> None:
        self.folder, self.layers, self.cache = folder, layers, cache
        self.shards = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(complete=kind is None)

    @abstractmethod
    def add(self, sample: Sample) -> None:
        """Write one frame."""

    @abstractmethod
    def close(self, *, complete: bool) -> None:
        """Close the last file."""


class WebDataset(Writer):
    """Tar files: members of one frame share the name before the first dot."""

    _tar: tarfile.TarFile | None = None

    def add(self, sample: Sample) -> None:
        """See `Writer.add`."""
        if self._tar is not None and self._tar.offset >= SHARD_BYTES:
            self.close(complete=True)
        if self._tar is None:
            path = self.folder / f"data-{self.shards:06d}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - closed by `close`
            self.shards += 1
        # The loader lower-cases what follows the first dot; a store's names differ without case, too.
        members = {"json": json.dumps(sample.about, sort_keys=True).encode()}
        members |= {f"{name}.npy": _npy(values) for name, values in (sample.pairs | sample.features).items()}
        for name, data in members.items():
            member = tarfile.TarInfo(f"{sample.index:09d}.{name}")  # without owner and time: same frames, same bytes
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))

    def close(self, *, complete: bool) -> None:
        """See `Writer.close`."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None


def _npy(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values), allow_pickle=False)
    return file.getvalue()


class Datasets(Writer):
    """Parquet files of one schema, a row group a frame."""

    _file: pq.ParquetWriter | None = None
    _bytes = 0  # in the file that is open, before compression

    def add(self, sample: Sample) -> None:
        """See `Writer.add`."""
        about = sample.about | {"absent": json.dumps(sample.about["absent"], sort_keys=True)}
        columns = {name: pa.array([value]) for name, value in about.items()}
        columns |= {name: _list(values) for name, values in (sample.pairs | sample.features).items()}
        row = pa.table(columns)
        if self._bytes >= SHARD_BYTES:
            self.close(complete=False)
        if self._file is None:
            (self.folder / "data").mkdir(exist_ok=True)
            self._file = pq.ParquetWriter(self._path(self.shards), row.schema, compression="zstd", use_dictionary=False)
            self.shards += 1
        self._file.write_table(row.cast(self._file.schema))
        self._bytes += row.nbytes

    def close(self, *, complete: bool) -> None:
        """See `Writer.close`; the number of files, which their names say, is known only now."""
        if self._file is not None:
            self._file.close()
            self._file, self._bytes = None, 0
        for k in range(self.shards if complete else 0):
            self._path(k).rename(self.folder / "data" / f"train-{k:05d}-of-{self.shards:05d}.parquet")

    def _path(self, k: int) -> Path:
        return self.folder / "data" / f"{k:05d}.parquet"


def _list(values: NDArray[Any]) -> pa.Array:
    """(P,) or (P, n) as one list of values, or of lists of n values."""
    inner = pa.array(np.ascontiguousarray(values).ravel())
    if values.ndim == 2:
        inner = pa.FixedSizeListArray.from_arrays(inner, values.shape[1])
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), inner)


TARGETS: dict[str, type[Writer]] = {"webdataset": WebDataset, "datasets": Datasets}
