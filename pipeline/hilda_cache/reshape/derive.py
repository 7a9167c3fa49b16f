"""A part made from a part: fewer frames, cameras, teachers or layers, no points, or another encoding.

    new = narrow_recipe(recipe, layers={"dinov2": ["12"]})
    entry = derive_part(storage, part, recipe, store, new)      # reads (or links) only the arrays that stay

What stays is copied as it lies on disk, so its decoded values have the same bits. Only another encoding decodes and
encodes again, and measures what that loses. The new part's id is known before anything is read, so that an interrupted
command finds what it has already made.

Legend: V cameras, P pairs, H x W token grid, C channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_cache.reshape.place import place_file, place_part
from hilda_schema.encoding import ChannelStatistics, decode_float16, decode_int8, dequantise_uv
from hilda_schema.errors import UsageError
from hilda_schema.features import encode_features
from hilda_schema.layout import POINT_COLUMNS, ArraySpec, PartSizes, layer_path, part_arrays
from hilda_schema.manifest import (
    EncodingError,
    FileSeal,
    FrameRow,
    LayerInfo,
    PartEntry,
    Recipe,
    Seal,
    canonical_json,
    sha256_hex,
)
from hilda_schema.part import OpenPart, open_part, read_seal, write_metadata
from hilda_schema.sampling import sample_grid
from hilda_schema.shard import write_array
from hilda_schema.storage import Storage
from hilda_schema.writer import existing_part, make_part

GONE = 255  # a camera that is cut away; a store has at most 255, numbered from 0


def narrow_recipe(
    recipe: Recipe,
    *,
    cameras: Collection[str] | None = None,
    teachers: Collection[str] | None = None,
    layers: Mapping[str, Collection[str]] | None = None,
) -> Recipe:
    """A recipe with less in it, everything in its old order.

    Args:
        recipe: what there is.
        cameras: which cameras stay; None: all.
        teachers: which teachers stay; None: all.
        layers: teacher -> which of its layers stay; a teacher that is not named keeps all.

    Raises:
        UsageError: a camera, teacher or layer that is not there, or nothing stays.
    """
    kept = []
    for teacher in _choose("teacher", recipe.teachers, [each.name for each in recipe.teachers], teachers):
        names = [layer.name for layer in teacher.layers]
        wanted = (layers or {}).get(teacher.name)
        found = _choose(f"layer of {teacher.name}", teacher.layers, names, wanted)
        kept.append(teacher.model_copy(update={"layers": tuple(found)}))
    if strange := sorted((layers or {}).keys() - {teacher.name for teacher in kept}):
        raise UsageError(f"layers of {strange[0]!r} are named, which is no teacher that stays")
    chosen = _choose("camera", recipe.dataset.cameras, recipe.dataset.cameras, cameras)
    dataset = recipe.dataset.model_copy(update={"cameras": tuple(chosen)})
    return recipe.model_copy(update={"dataset": dataset, "teachers": tuple(kept)})


def _choose(what: str, things: Sequence[Any], names: Sequence[str], wanted: Collection[str] | None) -> list[Any]:
    if wanted is None:
        return list(things)
    if strange := sorted(set(wanted) - set(names)):
        raise UsageError(f"there is no {what} {strange[0]!r}", f"there are: {', '.join(names)}")
    if not wanted:
        raise UsageError(f"no {what} would stay", f"there are: {', '.join(names)}")
    return [thing for thing, name in zip(things, names, strict=True) if name in wanted]


def check_derivable(recipe: Recipe, new: Recipe) -> None:
    """Refuse a recipe whose parts cannot be made from parts of another.

    Raises:
        UsageError: saying why not.
    """
    if (recipe.encoding.kind, new.encoding.kind) == ("point", "grid"):
        raise UsageError(
            "token grids cannot be made from features at the pairs: what lies between the points was never stored",
            "extract with --encoding grid",
        )
    if new.store_points and not recipe.store_points:
        raise UsageError("the store has no points to take over", "extract without --no-points")
    narrowed = narrow_recipe(
        recipe,
        cameras=new.dataset.cameras,
        teachers=[teacher.name for teacher in new.teachers],
        layers={teacher.name: [layer.name for layer in teacher.layers] for teacher in new.teachers},
    )
    changed = {name: getattr(new, name) for name in ("encoding", "store_points", "selection")}
    taken = _layers_of(recipe)
    for name, layer in _layers_of(new).items():
        if taken[name].reduction not in (None, layer.reduction):
            raise UsageError(f"{name} has lost channels already", "start from the store that has all of them")
    if unreduced(narrowed).model_copy(update=changed) != unreduced(new):
        raise UsageError(
            "a part can lose frames, cameras, teachers, layers, channels and points, or be encoded anew, no more"
        )


def unreduced(recipe: Recipe) -> Recipe:
    """A recipe with all channels of its models again."""

    def whole(layer: LayerInfo) -> LayerInfo:
        if layer.reduction is None:
            return layer
        return layer.model_copy(update={"channels": layer.reduction.channels, "reduction": None})

    teachers = [teacher.model_copy(update={"layers": tuple(map(whole, teacher.layers))}) for teacher in recipe.teachers]
    return recipe.model_copy(update={"teachers": tuple(teachers)})


def _layers_of(recipe: Recipe) -> dict[str, LayerInfo]:
    return {f"{teacher.name}/{layer.name}": layer for teacher in recipe.teachers for layer in teacher.layers}


def derived_id(part: str, recipe: Recipe, new: Recipe, keys: Sequence[str]) -> str:
    """The id of a part made from another: 32 digits of the hash of all that its bytes depend on.

    Args:
        part: id of the part that it is made from.
        recipe: of that part.
        new: its own recipe.
        keys: the frames that stay, in order.
    """
    identity = {
        "schema": new.schema_version,
        "part": part,
        "part_recipe": recipe.digest(),
        "recipe": new.digest(),
        "frames": list(keys),
    }
    return sha256_hex(canonical_json(identity))[:32]


def derive_part(
    source: Storage,
    part: str,
    recipe: Recipe,
    store: Path,
    new: Recipe,
    rows: Sequence[int] | None = None,
    seal_sha256: str | None = None,
    bases: Mapping[str, NDArray[np.float32]] | None = None,
) -> PartEntry:
    """Make a part from a part, or find it already made; one that stays as it is keeps its id and is linked or copied.

    Args:
        source: the store that holds the part; on disk or remote.
        part: its id.
        recipe: its recipe.
        store: folder of the store to write to, started.
        new: that store's recipe; see `check_derivable`.
        rows: which of the part's frames stay, ascending, neither none nor all; None: all.
        seal_sha256: what the source's manifest says of the part's seal.
        bases: "teacher/layer" -> (K, C) for each layer that loses channels, as the new recipe says.

    Returns:
        The new part, as the store's manifest lists it.

    Raises:
        UsageError: the recipe cannot be made from the other.
        CacheCorrupt: the source's part is not what was sealed.
        CacheError: the part cannot be written, or a feature is beyond what the new encoding can hold.
    """
    check_derivable(recipe, new)
    if new.digest() == recipe.digest() and rows is None:
        return place_part(source, part, recipe, store, seal_sha256)
    opened, _ = open_part(source, part, recipe, seal_sha256)
    rows = range(len(opened.frames)) if rows is None else rows
    seal, _, _ = read_seal(source, part)
    made = _Derivation(opened, seal, recipe, new, rows, bases or {})
    if found := existing_part(store, made.part, new.digest(), new):
        return found
    return make_part(store, new, made.part, made.write)


class _Derivation:
    """One part on its way to another."""

    def __init__(
        self,
        opened: OpenPart,
        seal: Seal,
        recipe: Recipe,
        new: Recipe,
        rows: Sequence[int],
        bases: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.opened, self.seal, self.recipe, self.new, self.rows, self.bases = opened, seal, recipe, new, rows, bases
        names = recipe.dataset.cameras
        self.cameras = [names.index(name) for name in new.dataset.cameras]
        self.numbers = np.full(len(names), GONE, np.uint8)  # old number of a camera -> new
        self.numbers[self.cameras] = np.arange(len(self.cameras))
        self.all_rows, self.all_cameras = len(rows) == len(opened.frames), len(self.cameras) == len(names)
        self.part = derived_id(opened.part, recipe, new, [opened.frames[row].key for row in rows])

    def write(self, folder: Path) -> Seal:
        """Fill the part's folder; all but the seal, which is returned."""
        frames = tuple(self._frame(row) for row in self.rows)
        points = sum(frame.points for frame in frames)
        here = {column.name for column in POINT_COLUMNS if column.optional and f"points/{column.name}" in self._arrays}
        sizes = PartSizes(
            frames=len(frames),
            points=points,
            pairs=sum(frame.pairs for frame in frames),
            point_columns=frozenset(here if points else ()),
        )
        arrays = part_arrays(self.new, sizes)
        files = write_metadata(folder, arrays, self.new)
        errors = self._copied_errors() | self._encode_anew(folder, arrays, files)
        for path, spec in arrays.items():
            if spec.chunks and spec.shard_path not in files:
                files[spec.shard_path] = self._copy(folder, path, spec, frames)
        cameras = tuple(self.seal.cameras[number] for number in self.cameras)
        whole = self.all_rows and self.all_cameras
        return Seal(
            schema_version=self.new.schema_version,
            part=self.part,
            recipe_digest=self.new.digest(),
            scene=self.seal.scene,
            cameras=cameras,
            frames=frames,
            # A seal does not say which frame read which file: names of files that only lost frames read must not stay.
            sources=self.seal.sources if whole else {},
            calibration_sha256=self.seal.calibration_sha256,
            encoding_error=errors,
            files=dict(sorted(files.items())),
        )

    @property
    def _arrays(self) -> dict[str, ArraySpec]:
        return self.opened.arrays

    def _copied_errors(self) -> dict[str, EncodingError]:
        """What was measured of the whole part still bounds what is left of it."""
        return {name: self.seal.encoding_error[name] for name in _layers_of(self.new)}

    def _frame(self, row: int) -> FrameRow:
        frame = self.opened.frames[row]
        if self.all_cameras:
            return frame
        point = self._pair_rows("pairs/point", row)
        gone = set(self.recipe.dataset.cameras) - set(self.new.dataset.cameras)
        absent = {name: why for name, why in frame.absent.items() if name not in gone}
        changes = {"pairs": len(point), "points_seen": len(np.unique(point)), "absent": absent}
        return frame.model_copy(update=changes)

    def _copy(self, folder: Path, path: str, spec: ArraySpec, frames: Sequence[FrameRow]) -> FileSeal:
        """Take an array over: the whole file where nothing of it goes, else the rows that stay."""
        free_of_cameras = spec.dims[0] in ("point", "channel") or path == "points/offset"
        if self.all_rows and (self.all_cameras or free_of_cameras) and spec == self._arrays[path]:
            sealed = self.seal.files[spec.shard_path]
            source = f"parts/{self.opened.part}/{spec.shard_path}"
            place_file(self.opened.storage, source, folder / spec.shard_path, sealed)
            return sealed
        return write_array(folder, spec, self._rows_of(path, spec, frames))

    def _rows_of(self, path: str, spec: ArraySpec, frames: Sequence[FrameRow]) -> Iterator[NDArray[Any]]:
        """An array's new rows, frame by frame."""
        first = spec.dims[0]
        if first == "frame_edge":
            counts = [getattr(frame, path.split("/")[0]) for frame in frames]
            yield np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        elif first == "channel":
            yield self.opened.read_whole(path)
        elif path == "present":
            yield self.opened.read_whole(path)[list(self.rows)][:, self.cameras]
        elif first == "point":
            for row in self.rows:
                yield self.opened.read_rows(path, *self.opened.edges("points", row), row)
        elif first == "pair":
            for row in self.rows:
                values = self._pair_rows(path, row)
                yield self.numbers[values] if path == "pairs/camera" else values
        else:
            for row in self.rows:
                yield self._camera_rows(path, row)[None]

    def _camera_rows(self, path: str, row: int) -> NDArray[Any]:
        """(V, ...) one frame of an array that has a row for each camera."""
        values: NDArray[Any] = self.opened.read_rows(path, row, row + 1, row)[0][self.cameras]
        return values

    def _pair_rows(self, path: str, row: int) -> NDArray[Any]:
        """(P, ...) one frame of an array that has a row for each pair."""
        start, stop = self.opened.edges("pairs", row)
        values = self.opened.read_rows(path, start, stop, row)
        if self.all_cameras:
            return values
        camera = values if path == "pairs/camera" else self.opened.read_rows("pairs/camera", start, stop, row)
        kept: NDArray[Any] = values[self.numbers[camera] != GONE]
        return kept

    def _encode_anew(
        self, folder: Path, arrays: dict[str, ArraySpec], files: dict[str, FileSeal]
    ) -> dict[str, EncodingError]:
        """Write layers that change their encoding or lose channels, one after the other: only one is in memory."""
        errors = {}
        keys = [self.opened.frames[row].key for row in self.rows]
        for teacher in self.new.teachers:
            for layer in teacher.layers:
                basis = self.bases.get(f"{teacher.name}/{layer.name}")
                if basis is None and self.new.encoding == self.recipe.encoding:
                    continue
                values = [self._features(teacher.name, layer, row) for row in self.rows]
                encoded = encode_features(
                    self.new.encoding, teacher.name, layer, values, keys, self.new.dataset.cameras, basis
                )
                for path, rows in encoded.rows.items():
                    if (spec := arrays[path]).chunks:
                        files[spec.shard_path] = write_array(folder, spec, rows)
                if encoded.error is not None:
                    errors[encoded.layer] = encoded.error
        return errors

    def _features(self, teacher: str, layer: LayerInfo, row: int) -> NDArray[np.float32]:
        """One frame's features as a reader gets them: (V, H, W, C), or (P, C) where the new store has them at pairs."""
        path, grid = layer_path(teacher, layer.name), self.recipe.encoding.kind == "grid"
        rows_of = self._camera_rows if grid else self._pair_rows
        stored = rows_of(f"{path}/{'tokens' if grid else 'features'}", row)
        if self.recipe.encoding.dtype == "int8":
            mean, scale = (self.opened.read_whole(f"{path}/channel_{name}") for name in ("mean", "scale"))
            values = decode_int8(stored, rows_of(f"{path}/scale", row), ChannelStatistics(mean, scale))
        else:
            values = decode_float16(stored)
        if not grid or self.new.encoding.kind == "grid":
            return values
        camera = self.numbers[self._pair_rows("pairs/camera", row)]
        return sample_grid(values, camera, dequantise_uv(self._pair_rows("pairs/uv", row)))
