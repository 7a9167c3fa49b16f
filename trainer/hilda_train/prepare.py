"""From a config and caches to everything a run needs, before the first step: clips, order, learner, optimiser."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hilda_schema.errors import TrainError, UsageError
from hilda_schema.manifest import TeacherInfo
from hilda_schema.reader import Cache, open_cache
from hilda_schema.storage import pinned
from hilda_train.config import Facts, FitConfig, Resolved, resolve
from hilda_train.config.occupancy import BceConfig, DiffusionConfig
from hilda_train.config.student import MinkUNetConfig, WaffleIronConfig
from hilda_train.data.augment import AugmentOptions
from hilda_train.data.batches import ClipDataset, SampleOptions
from hilda_train.data.clips import Clip, clips_of, median_spacing_s, require_whole_clips
from hilda_train.data.loading import TokenPlan
from hilda_train.data.scans import INTENSITY, ScanOptions, intensity_remedy, sensor_name
from hilda_train.data.tokens import TeacherLayer
from hilda_train.data.voxelise import Reduction, VoxelGrid
from hilda_train.learner import Learner, bev_grid


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A run before its first step."""

    config: FitConfig  # resolved
    reasons: tuple[str, ...]  # why each "auto" became what it is
    caches: tuple[Cache, ...]
    clips: tuple[Clip, ...]
    dataset: ClipDataset
    tokens: TokenPlan
    widths: tuple[int, ...]  # channels of each target
    global_width: int


def prepare(config: FitConfig, urls: Sequence[str], device: torch.device) -> Prepared:
    """Open the caches and settle the config.

    Raises:
        UsageError: no cache, no clip, or a config that does not fit the caches.
        CacheError: a cache cannot be opened.
    """
    if not urls:
        raise UsageError("no cache is given", "add --cache STORE, or data.caches in the recipe")
    caches = tuple(open_cache(url) for url in urls)
    clips = select_clips(config, caches)
    resolved = settle(config, caches, len(clips), device)
    config = resolved.config
    require_intensity(config, caches)
    if config.objectives.uses_future:
        require_whole_clips(clips, config.data.gap_s, max(median_spacing_s(cache.frames) for cache in caches))
    layers = tuple(TeacherLayer(target.teacher, target.layer) for target in config.targets)  # type: ignore[union-attr]
    uses_global = config.objectives.global_context.weight > 0
    global_teacher = config.objectives.global_context.teacher if uses_global else None
    return Prepared(
        config=config,
        reasons=resolved.reasons,
        caches=caches,
        clips=clips,
        # Pinned: a worker opens the stores later, and must meet the ones that the run was prepared for.
        dataset=ClipDataset(pinned_urls(urls, caches), clips, sample_options(config)),
        tokens=TokenPlan(layers if config.objectives.uses_pairs else (), global_teacher),
        widths=tuple(width_of(caches, layer) for layer in layers),
        global_width=global_width_of(caches, global_teacher) if global_teacher else 0,
    )


def pinned_urls(urls: Sequence[str], caches: Sequence[Cache]) -> tuple[str, ...]:
    """The caches' URLs, that open with the content that they have now and no other."""
    return tuple(pinned(url, cache.manifest.root_sha256) for url, cache in zip(urls, caches, strict=True))


def select_clips(config: FitConfig, caches: Sequence[Cache]) -> tuple[Clip, ...]:
    """Clips whose scene is trained on.

    Raises:
        UsageError: none is left, or a pattern names no scene at all: a scene that is held out by a name with a typing
            mistake would be trained on.
    """
    require_scenes(caches, (*config.data.scenes, *config.data.held_out), "data.scenes, data.held_out")
    found: list[Clip] = []
    for number, cache in enumerate(caches):
        scenes = cache.frames["scene"].to_pylist()
        trained = {scene for scene in set(scenes) if is_trained_on(config, scene)}
        clips = clips_of(cache.frames, number, config.data.gap_s)
        found += [clip for clip in clips if scenes[clip.current] in trained]
    if not found:
        raise UsageError(
            f"no frame is left: data.scenes = {list(config.data.scenes)}, data.held_out = {list(config.data.held_out)}",
            "hilda-cache info names the scenes; patterns are those of a shell",
        )
    return tuple(found)


def require_scenes(caches: Sequence[Cache], patterns: Sequence[str], where: str) -> None:
    """Refuse patterns that name no scene of any cache.

    Raises:
        UsageError: naming the first, where it was written, and the scenes that are called most like it.
    """
    known = {str(scene) for cache in caches for scene in cache.frames["scene"].to_pylist()}
    for pattern in patterns:
        if known and not any(matches(scene, [pattern]) for scene in known):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0) or sorted(known)[:3]
            raise UsageError(f"no scene is called {pattern!r} ({where})", f"there are {', '.join(near)}")


def is_trained_on(config: FitConfig, scene: str) -> bool:
    """Whether a scene is selected and not held out."""
    return matches(scene, config.data.scenes) and not matches(scene, config.data.held_out)


def matches(scene: str, patterns: Sequence[str]) -> bool:
    """Whether a scene's name fits a shell pattern."""
    return any(fnmatch.fnmatchcase(scene, pattern) for pattern in patterns)


def settle(config: FitConfig, caches: Sequence[Cache], clips: int, device: torch.device) -> Resolved:
    """Resolve "auto" and durations against the caches and the device."""
    teachers: dict[str, tuple[str, ...]] = {}
    for cache in caches:
        for name, info in cache.teachers.items():
            teachers.setdefault(name, tuple(layer.name for layer in info.layers))
    sensors = {sensor_name(cache.manifest.recipe.dataset) for cache in caches}
    facts = Facts(
        teachers=teachers,
        steps_per_epoch=clips // config.data.batch_size,
        bfloat16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        intensity={name: INTENSITY[name] for name in sorted(sensors & INTENSITY.keys())},
    )
    return resolve(config, facts)


def require_intensity(config: FitConfig, caches: Sequence[Cache]) -> None:
    """Refuse a sensor whose intensity nothing standardises, before the first sweep is read.

    Raises:
        UsageError: naming the sensor.
    """
    if "intensity" not in config.student.channels:
        return
    for cache in caches:
        sensor = sensor_name(cache.manifest.recipe.dataset)
        if sensor not in config.data.intensity:
            raise UsageError(f"no intensity statistics for {sensor}", intensity_remedy(sensor))


def width_of(caches: Sequence[Cache], wanted: TeacherLayer) -> int:
    """Channels of a stored layer, the same in every cache that has it.

    Raises:
        TrainError: no cache has it, or they disagree about it.
    """
    holders = same_teacher(caches, wanted.teacher)
    found = {(layer.channels, layer.reduction) for info in holders if (layer := info.layer(wanted.layer))}
    widths = {channels for channels, _ in found}
    if len(widths) != 1:
        raise TrainError(f"layer {wanted.layer} of {wanted.teacher} is not stored, or of several widths: {widths}")
    if len(found) != 1:
        raise TrainError(
            f"layer {wanted.layer} of {wanted.teacher} lost channels in another way in each cache, so that their "
            "features mean different things",
            "encode one as the other: hilda-cache reencode --like",
        )
    return widths.pop()


def global_width_of(caches: Sequence[Cache], teacher: str) -> int:
    """Width of a teacher's global token.

    Raises:
        UsageError: it has none.
        TrainError: the caches disagree about the teacher.
    """
    widths = {info.global_width for info in same_teacher(caches, teacher)} - {0}
    if len(widths) != 1:
        raise UsageError(f"teacher {teacher!r} has no global token", "set objectives.global_context.weight=0")
    return widths.pop()


def same_teacher(caches: Sequence[Cache], name: str) -> list[TeacherInfo]:
    """What the caches that have a teacher say of it.

    Raises:
        TrainError: two of them mean another model, or another output of it, by the same name.
    """
    found = [(cache.url, info) for cache in caches if (info := cache.teachers.get(name))]
    for url, info in found[1:]:
        first_url, first = found[0]
        if info.weights_sha256 != first.weights_sha256:
            raise TrainError(
                f"teacher {name!r} is another model in {url} than in {first_url}",
                "extract both caches with the same weights, or name the teachers apart",
            )
        if info.norm != first.norm:
            raise TrainError(
                f"teacher {name!r} was stored {info.norm}-norm in {url} and {first.norm}-norm in {first_url}",
                "extract both caches alike, or name the teachers apart",
            )
    return [info for _, info in found]


def sample_options(config: FitConfig) -> SampleOptions:
    """How clips are prepared, from the config's own words."""
    data, occupancy = config.data, config.objectives.occupancy
    forecast = occupancy if isinstance(occupancy, DiffusionConfig | BceConfig) else None
    return SampleOptions(
        scan=scan_options(config),
        augment=AugmentOptions(**data.augment.model_dump()),
        bev=bev_grid(forecast) if forecast else None,
        unseen_is_free=forecast.unseen_is_free if forecast else False,
        history=forecast is not None,
        seed=config.train.seed,
    )


def scan_options(config: FitConfig) -> ScanOptions:
    """How sweeps are prepared for the student."""
    data = config.data
    grid, reduction, neighbours = _voxels(config.student)
    return ScanOptions(
        grid=grid,
        reduction=reduction,
        thin=isinstance(config.student, WaffleIronConfig) and config.student.thin_m is not None,
        channels=config.student.channels,
        cameras=data.cameras,
        frustum_only=data.frustum_only,
        visible_only=data.visible_only,
        max_points=data.max_points,
        neighbours=neighbours,
        intensity={name: (each.mean, each.std) for name, each in data.intensity.items()},
    )


def _voxels(student: MinkUNetConfig | WaffleIronConfig) -> tuple[VoxelGrid | None, Reduction, int]:
    """Grid, reduction and neighbours that the student's sweeps need."""
    if isinstance(student, MinkUNetConfig):
        voxels = student.voxels
        return VoxelGrid(voxels.shape, voxels.size, voxels.range_m), voxels.reduction, 0
    edge_m = student.thin_m or 0.1  # without thinning the grid only crops
    return VoxelGrid("cartesian", (edge_m,) * 3, student.range_m), "random", student.neighbours


def build_learner(prepared: Prepared) -> Learner:
    """The learner, with weights that follow from the seed."""
    torch.manual_seed(prepared.config.train.seed)
    return Learner(prepared.config, prepared.widths, prepared.global_width)
