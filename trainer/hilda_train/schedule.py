"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore, nothing to drift.

Steps are optimiser steps, counted from 0; a run of T steps uses the rates of 0 .. T - 1.
"""

from __future__ import annotations

import math

from hilda_train.config.training import (
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    OneCycleConfig,
    Schedule,
)


def learning_rate(schedule: Schedule, highest: float, step: int, steps: int) -> float:
    """Rate of one step.

    Args:
        schedule: with durations resolved to steps (`config.resolve`).
        highest: the optimiser's `lr`.
        step: 0 .. steps - 1.
        steps: T, of the whole run.
    """
    if isinstance(schedule, OneCycleConfig):
        return _one_cycle(schedule, highest, step, steps)
    warmup = _steps(schedule.warmup)
    if step < warmup:
        return highest * step / warmup
    if isinstance(schedule, ConstantConfig):
        return highest
    if isinstance(schedule, CosineConfig):
        return _cosine(highest, schedule.final_lr, (step - warmup) / (steps - warmup))
    return _inverse_sqrt(schedule, highest, step, steps)


def _inverse_sqrt(schedule: InverseSqrtConfig, highest: float, step: int, steps: int) -> float:
    """Highest / sqrt(1 + t / timescale), t steps after the warm-up (ScaLR+); then linearly to zero at step T."""
    warmup, timescale, cooldown = map(_steps, (schedule.warmup, schedule.timescale, schedule.cooldown))
    turn = min(step, steps - cooldown)
    rate = highest / math.sqrt(1 + (turn - warmup) / timescale)
    return rate * (steps - step) / cooldown if step > turn else rate


def _one_cycle(schedule: OneCycleConfig, highest: float, step: int, steps: int) -> float:
    """As `torch.optim.lr_scheduler.OneCycleLR(anneal_strategy="cos", three_phase=False)`; momentum is left alone."""
    first = highest / schedule.start_divisor
    top = schedule.peak * steps - 1
    if step <= top:
        return _cosine(first, highest, step / top if top > 0 else 1.0)
    return _cosine(highest, first / schedule.end_divisor, (step - top) / (steps - 1 - top))


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from start (progress 0) to end (progress 1)."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def _steps(duration: int | str) -> int:
    assert isinstance(duration, int), f"duration {duration!r} is not resolved"
    return duration
