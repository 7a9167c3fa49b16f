"""Optimiser, learning-rate schedule, and the run itself: how long, how exactly, what is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hilda_train.config.section import FREE, Count, Duration, Fraction, NotNegative, Positive, Section


class AdamWConfig(Section):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 2e-3
    """Highest learning rate; the schedule gives shares of it."""
    weight_decay: NotNegative = 0.03
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    decay_all: bool = True
    """Decay normalisation weights and biases too, as the published code does."""
    clip_norm: Positive | None = None
    """Largest norm of the whole gradient; null leaves it."""


class SgdConfig(Section):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.5
    weight_decay: NotNegative = 1e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    dampening: Annotated[float, Field(ge=0, lt=1)] = 0.1
    decay_all: bool = True
    clip_norm: Positive | None = None


class ConstantConfig(Section):
    """Warm-up, then the highest rate."""

    kind: Literal["constant"] = "constant"
    warmup: Duration = 0


class CosineConfig(Section):
    """Warm-up, then half a cosine down to `final_lr`."""

    kind: Literal["cosine"] = "cosine"
    warmup: Duration = 0
    final_lr: NotNegative = 0.0


class OneCycleConfig(Section):
    """One cycle of Smith and Topin, "Super-Convergence", 2018, with cosine flanks, as torch's OneCycleLR."""

    kind: Literal["onecycle"] = "onecycle"
    peak: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the run after which the rate is highest (torch: pct_start)."""
    start_divisor: Annotated[float, Field(ge=1)] = 25.0
    """The first rate is the highest divided by this (torch: div_factor)."""
    end_divisor: Annotated[float, Field(ge=1)] = 1e4
    """The last rate is the first divided by this (torch: final_div_factor)."""


class InverseSqrtConfig(Section):
    """Warm-up, then 1 / sqrt(1 + t / timescale), then a straight line down to zero."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup: Duration = 0
    timescale: Duration
    """Steps after the warm-up in which the rate falls to 1 / sqrt(2)."""
    cooldown: Duration = 0
    """Length of the final line."""


Optim = Annotated[AdamWConfig | SgdConfig, Field(discriminator="kind")]
Schedule = Annotated[ConstantConfig | CosineConfig | OneCycleConfig | InverseSqrtConfig, Field(discriminator="kind")]


class TrainConfig(Section):
    """How long, how exactly, and what is kept."""

    epochs: Positive | None = None
    max_steps: Count | None = None
    """Optimiser steps. Where epochs are given too, the run ends at whichever comes first."""
    accumulate: Count = 1
    """Parts that a step's clips are split into, one after the other, to save memory."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the student's and the heads' products; losses are float32. Auto: bfloat16 on a GPU that has it."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Also keep an exponential moving average of the weights with this decay."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    deterministic: bool = True
    """Use no operation whose result depends on timing."""
    checkpoint_every: Count = Field(default=500, json_schema_extra=FREE)
    """Steps between checkpoints."""
    keep: Annotated[int, Field(ge=2)] = Field(default=3, json_schema_extra=FREE)
    """Checkpoints kept, at least two: the newest may be the one that is damaged."""
    log_every: Count = Field(default=10, json_schema_extra=FREE)
    """Steps between log lines."""

    @model_validator(mode="after")
    def _ends(self) -> TrainConfig:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("set train.epochs or train.max_steps: the run would never end")
        return self
