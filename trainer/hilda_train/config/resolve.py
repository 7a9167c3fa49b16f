"""From what was asked to what will be done: "auto" and durations, settled once when the caches are open.

The result is written into the run's folder and is what every later command reads. Resolving it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hilda_schema.errors import UsageError
from hilda_train.config.data import DataConfig, IntensityConfig
from hilda_train.config.fit import FitConfig, TargetConfig
from hilda_train.config.section import DURATION
from hilda_train.config.training import CosineConfig, InverseSqrtConfig, Schedule


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known once caches and machine are."""

    teachers: Mapping[str, tuple[str, ...]]
    """Teacher -> its stored layers, from the earliest to the last; teachers in the store's order."""
    steps_per_epoch: int
    bfloat16: bool
    """Whether the device multiplies bfloat16 at full speed."""
    intensity: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Published mean and standard deviation of the intensity, for those of the caches' datasets that have them."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config without "auto", and why each such value became what it is."""

    config: FitConfig
    reasons: tuple[str, ...]


def resolve(config: FitConfig, facts: Facts) -> Resolved:
    """Settle everything that depends on the caches or the machine.

    Raises:
        UsageError: a teacher or layer that is not stored, a data set smaller than a step, or a schedule whose parts
            are longer than the run.
    """
    reasons: list[str] = []
    targets = _targets(config, facts, reasons)
    global_context = config.objectives.global_context
    if global_context.teacher == "auto":
        global_context = global_context.model_copy(update={"teacher": targets[-1].teacher})
        if global_context.weight:
            reasons.append(f"objectives.global_context.teacher = {targets[-1].teacher}: the last target's")
    elif global_context.weight and global_context.teacher not in facts.teachers:
        raise _unknown_teacher("objectives.global_context.teacher", global_context.teacher, facts)
    steps = _total_steps(config, facts, reasons)
    precision = config.train.precision
    if precision == "auto":
        precision = "bfloat16" if facts.bfloat16 else "float32"
        reasons.append(f"train.precision = {precision}: the device {'favours' if facts.bfloat16 else 'lacks'} bfloat16")
    elif precision == "bfloat16" and not facts.bfloat16:
        reasons.append("train.precision = bfloat16: many times slower than float32 on a CPU without such arithmetic")
    changed = {
        "targets": targets,
        "data": _data(config, facts, reasons),
        "objectives": config.objectives.model_copy(update={"global_context": global_context}),
        "schedule": settle_schedule(config.schedule, steps, facts.steps_per_epoch, reasons),
        "train": config.train.model_copy(update={"max_steps": steps, "precision": precision}),
    }
    return Resolved(config.model_copy(update=changed), tuple(reasons))


def _targets(config: FitConfig, facts: Facts, reasons: list[str]) -> tuple[TargetConfig, ...]:
    if config.targets != "auto":
        for target in config.targets:
            if target.teacher not in facts.teachers:
                raise _unknown_teacher("targets", target.teacher, facts)
            if target.layer not in facts.teachers[target.teacher]:
                stored = ", ".join(facts.teachers[target.teacher])
                raise UsageError(
                    f"targets names layer {target.layer!r} of {target.teacher}, which is not stored",
                    f"stored are {stored}; or extract it with hilda-cache extract --layers",
                )
        return config.targets
    if not facts.teachers:
        raise UsageError("the cache holds no teacher", "extract one: hilda-cache extract --teacher")
    teacher, layers = next(iter(facts.teachers.items()))
    levels = config.student.levels
    if len(layers) < len(levels):
        raise UsageError(
            f"targets = auto needs a stored layer for each of the {len(levels)} levels of student.levels, "
            f"and {teacher} has {len(layers)}",
            f"set student.levels=[{levels[-1]}], or name the targets",
        )
    chosen = layers[len(layers) - len(levels) :]
    names = ", ".join(f"{teacher}/{layer}" for layer in chosen)
    reasons.append(f"targets = {names}: the last stored layers of the first teacher")
    return tuple(TargetConfig(teacher=teacher, layer=layer) for layer in chosen)


def _unknown_teacher(key: str, teacher: str, facts: Facts) -> UsageError:
    stored = ", ".join(facts.teachers)
    return UsageError(f"{key} names teacher {teacher!r}, which the cache does not hold", f"it has {stored}")


def _data(config: FitConfig, facts: Facts, reasons: list[str]) -> DataConfig:
    """With the statistics of every dataset written out: whoever uses the backbone needs them."""
    if "intensity" not in config.student.channels:
        return config.data
    intensity = dict(config.data.intensity)
    for dataset, (mean, std) in facts.intensity.items():
        if dataset not in intensity:
            intensity[dataset] = IntensityConfig(mean=mean, std=std)
            reasons.append(f"data.intensity.{dataset} = {mean:g} +- {std:g}: published")
    return config.data.model_copy(update={"intensity": intensity})


def _total_steps(config: FitConfig, facts: Facts, reasons: list[str]) -> int:
    if facts.steps_per_epoch < 1:
        raise UsageError(
            f"there are fewer clips than data.batch_size = {config.data.batch_size}",
            "give more scenes, or set data.batch_size=1",
        )
    limits = []
    if config.train.epochs is not None:
        limits.append(max(1, round(config.train.epochs * facts.steps_per_epoch)))
    if config.train.max_steps is not None:
        limits.append(config.train.max_steps)
    if min(limits) != config.train.max_steps:
        epochs = f"{config.train.epochs:g} epochs of {facts.steps_per_epoch} steps"
        reasons.append(f"train.max_steps = {min(limits)}: {epochs}")
    return min(limits)


def settle_schedule(schedule: Schedule, steps: int, steps_per_epoch: int, reasons: list[str]) -> Schedule:
    """A schedule with its durations in steps; what each became is added to the reasons.

    Raises:
        UsageError: its parts are longer than the run.
    """
    lengths: dict[str, int] = {}
    for name in ("warmup", "timescale", "cooldown"):
        asked = getattr(schedule, name, None)
        if asked is not None:
            lengths[name] = _steps_of(asked, steps, steps_per_epoch)
            if asked != lengths[name]:
                reasons.append(f"schedule.{name} = {lengths[name]}: {asked} of {steps} steps")
    used = lengths.get("warmup", 0) + lengths.get("cooldown", 0)
    if isinstance(schedule, CosineConfig | InverseSqrtConfig) and used >= steps:
        keys = "schedule.warmup and schedule.cooldown" if "cooldown" in lengths else "schedule.warmup"
        raise UsageError(
            f"{keys} take {used} steps, but the run has only {steps} (train.epochs, train.max_steps)",
            "shorten them, e.g. --set schedule.warmup=2%",
        )
    if "timescale" in lengths:
        lengths["timescale"] = max(1, lengths["timescale"])
    return schedule.model_copy(update=lengths)


def _steps_of(duration: int | str, steps: int, steps_per_epoch: int) -> int:
    if isinstance(duration, int):
        return duration
    match = DURATION.fullmatch(duration)
    assert match, duration  # validated when the config was read
    number, unit = float(match[1]), match[2]
    return round(number / 100 * steps) if unit == "%" else round(number * steps_per_epoch)
