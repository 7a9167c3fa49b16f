"""What an extraction will cost, said before the first hour is spent: parts, images, bytes, files, time, does it fit.

Bytes and files follow from the format's own table of arrays and from the points and pairs of a few frames spread over
the selection; time follows from taking these frames through the pipeline, all but the writing, in one process: it holds
where that many workers have a core, or a GPU, each.
"""

from __future__ import annotations

import heapq
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives import Drive
from hilda_cache.lanes import Stopwatch, lanes
from hilda_cache.parts import PartPlan, hash_sources, plan_parts
from hilda_cache.recipe import resolve_recipe
from hilda_cache.request import ExtractRequest, open_drive_once
from hilda_cache.work import compute_device, make_frame, teachers_of
from hilda_schema.content import FrameContent, PartContent
from hilda_schema.features import encode_part
from hilda_schema.layout import LIDAR, POINT_COLUMNS, PartSizes, part_arrays
from hilda_schema.manifest import EncodingInfo, Recipe
from hilda_schema.part import metadata_files
from hilda_schema.shard import shard_bytes

SAMPLED_FRAMES, TAUGHT_EVERY = 12, 4  # frames that are read and projected; each fourth is shown to the teachers
MEASURED_PARTS = 100  # of a large store, at most so many parts are worked out, the others are like them
RESERVE = 0.05  # of the disk that must stay free: full disks are slow, and others write too
ROOT_FILES = 5  # manifest.json, frames.parquet, history.json, zarr.json of the store and of its folder of parts
ENCODINGS = (("grid", "float16"), ("grid", "int8"), ("point", "float16"), ("point", "int8"))
# What a seal says, in bytes of JSON: its own fields, then each frame, sensor file, file of the part and chunk.
SEAL_BYTES, FRAME_BYTES, SOURCE_BYTES, FILE_BYTES, CHUNK_BYTES = 1000, 750, 125, 115, 11.5


@dataclass(frozen=True, slots=True)
class Plan:
    """The cost of an extraction; every number is for the whole of it."""

    parts: int
    frames: int
    images: int
    missing_images: int
    points_per_frame: float
    pairs_per_frame: float
    bytes_by_encoding: dict[str, int]
    encoding: str
    files: int
    free_bytes: int
    seconds_per_image: float  # of all teachers together
    seconds_per_frame: float  # by one worker, of all but writing
    workers: int  # that find a part to work on
    hours: float  # of making parts, once the workers have their models

    @property
    def fits(self) -> bool:
        """Whether the chosen encoding leaves the disk its reserve."""
        return self.bytes_by_encoding[self.encoding] <= self.free_bytes * (1 - RESERVE)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return asdict(self) | {"fits": self.fits}


@dataclass(frozen=True, slots=True)
class Probe:
    """What n frames of the selection turned out to hold and to take."""

    at: NDArray[np.intp]  # (n,) position in the selection, rising
    points: NDArray[np.intp]  # (n,)
    pairs: NDArray[np.intp]  # (n,)
    point_columns: frozenset[str]
    seconds_per_image: float
    seconds_per_frame: float


def make_plan(request: ExtractRequest, store: Path, workers: int) -> Plan:
    """Work out the cost of a request; loads the teachers, takes a few frames through the pipeline, writes nothing.

    Raises:
        UsageError: the selection holds no frame.
        HildaError: the drive or a teacher cannot be used.
    """
    recipe = resolve_recipe(request, None)
    drive = open_drive_once(request.drive)
    plans = plan_parts(drive, request.selection, recipe.part_frames)
    frames = sum(plan.stop - plan.start for plan in plans)
    images, missing = count_images(drive, plans, recipe.dataset.cameras)
    probe = probe_frames(request, drive, recipe, plans)
    sizes = {}
    for kind, dtype in ENCODINGS:
        as_encoded = recipe.model_copy(update={"encoding": EncodingInfo(kind=kind, dtype=dtype)})  # type: ignore[arg-type]
        sizes[f"{kind} {dtype}"] = store_size(as_encoded, plans, probe, images / frames)
    encoding = f"{recipe.encoding.kind} {recipe.encoding.dtype}"
    busy = min(workers, len(plans))
    return Plan(
        parts=len(plans),
        frames=frames,
        images=images,
        missing_images=missing,
        points_per_frame=float(probe.points.mean()),
        pairs_per_frame=float(probe.pairs.mean()),
        bytes_by_encoding={name: size for name, (size, _) in sizes.items()},
        encoding=encoding,
        files=sizes[encoding][1],
        free_bytes=shutil.disk_usage(nearest_folder(store)).free,
        seconds_per_image=probe.seconds_per_image,
        seconds_per_frame=probe.seconds_per_frame,
        workers=busy,
        hours=most_frames(plans, busy) * probe.seconds_per_frame / 3600,
    )


def most_frames(plans: list[PartPlan], workers: int) -> int:
    """Frames of the worker that has most to do, where each takes the next part when it is done with one."""
    loads = [0] * workers
    for plan in plans:
        heapq.heapreplace(loads, loads[0] + plan.stop - plan.start)
    return max(loads)


def nearest_folder(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def count_images(drive: Drive, plans: list[PartPlan], cameras: tuple[str, ...]) -> tuple[int, int]:
    """How many images the tables name for these parts, and how many of them the disk lacks."""
    images = missing = 0
    for plan in plans:
        for info in drive.frames(plan.scene)[plan.start : plan.stop]:
            for view in info.cameras:
                if view.name in cameras:
                    images += 1
                    missing += not os.path.exists(view.image_path)  # noqa: PTH110 - a million calls; pathlib is 3x slower
    return images, missing


def probe_frames(request: ExtractRequest, drive: Drive, recipe: Recipe, plans: list[PartPlan]) -> Probe:
    """Take a few frames through the pipeline; what cannot be read counts as absent."""
    teachers, cameras = teachers_of(request, recipe), recipe.dataset.cameras

    def take(where: tuple[str, int], shown: bool) -> tuple[FrameContent, Stopwatch]:
        scene, position = where
        info, watch = drive.frames(scene)[position], Stopwatch()
        with watch.stage("hash"):
            sources = hash_sources(drive, [info], cameras)
        return make_frame(drive, teachers if shown else (), cameras, info, sources, watch, skip=True), watch

    def encode(frame: FrameContent) -> float:
        began = time.perf_counter()
        sizes = dict.fromkeys(cameras, (1, 1))  # any: how long it takes does not depend on them
        for _ in encode_part(recipe, PartContent("", frame.key.scene, sizes, (frame,), {}, "")):
            pass
        return time.perf_counter() - began

    frames = [(plan.scene, position) for plan in plans for position in range(plan.start, plan.stop)]
    at = np.unique(np.linspace(0, len(frames) - 1, SAMPLED_FRAMES).astype(np.intp))
    take(frames[0], True)  # the first time also allocates, tunes and fills the disk's cache
    taken = [take(frames[row], k % TAUGHT_EVERY == 0) for k, row in enumerate(at)]
    images = [len(cameras) - len(frame.absent.keys() - {LIDAR}) for frame, _ in taken]
    taught_s = [watch.seconds.pop("teach") for _, watch in taken][::TAUGHT_EVERY]
    loaded_s = float(np.median([sum(watch.seconds.values()) for _, watch in taken]))
    encoded_s = float(np.median([encode(frame) for frame, _ in taken[::TAUGHT_EVERY]]))
    return Probe(
        at=at,
        points=np.array([len(frame.xyz_m) for frame, _ in taken]),
        pairs=np.array([len(frame.pairs) for frame, _ in taken]),
        point_columns=frozenset(
            column.name
            for column in POINT_COLUMNS
            if column.optional and any(getattr(frame, column.name) is not None for frame, _ in taken)
        ),
        seconds_per_image=sum(taught_s) / max(1, sum(images[::TAUGHT_EVERY])),
        seconds_per_frame=seconds_per_frame(loaded_s, float(np.median(taught_s)), encoded_s),
    )


def seconds_per_frame(loaded_s: float, taught_s: float, encoded_s: float) -> float:
    """Of a worker: one core does everything in turns, but beside a GPU the slowest lane counts."""
    if compute_device() == "cpu":
        return loaded_s + taught_s + encoded_s
    return max(loaded_s / lanes().loaders, taught_s, encoded_s)


def store_size(recipe: Recipe, plans: list[PartPlan], probe: Probe, images_per_frame: float) -> tuple[int, int]:
    """Bytes and files of a store whose frames are like the probed ones nearest to them."""
    ends = np.cumsum([plan.stop - plan.start for plan in plans])
    measured = range(0, len(plans), -(-len(plans) // MEASURED_PARTS))
    total = files = counted_frames = 0.0
    for k in measured:
        frames = plans[k].stop - plans[k].start
        rows = np.arange(ends[k] - frames, ends[k])
        points, pairs = (round(np.interp(rows, probe.at, each).sum()) for each in (probe.points, probe.pairs))
        arrays = part_arrays(recipe, PartSizes(frames, points, pairs, probe.point_columns))
        shards = [spec for spec in arrays.values() if spec.chunks]
        metadata = metadata_files(arrays, recipe)
        in_part = len(shards) + len(metadata)
        seal = SEAL_BYTES + frames * (FRAME_BYTES + SOURCE_BYTES * (1 + images_per_frame))
        seal += FILE_BYTES * in_part + CHUNK_BYTES * sum(spec.chunks for spec in shards)
        total += seal + sum(map(shard_bytes, shards)) + sum(map(len, metadata.values()))
        files += in_part + 1
        counted_frames += frames
    return round(total * ends[-1] / counted_frames), ROOT_FILES + round(files * len(plans) / len(measured))
