"""The whole tree, and the checks that need more than one section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from hilda_train.config.data import DataConfig
from hilda_train.config.objectives import ObjectivesConfig
from hilda_train.config.section import FREE, Section
from hilda_train.config.student import MinkUNetConfig, Student
from hilda_train.config.training import AdamWConfig, CosineConfig, Optim, Schedule, TrainConfig

LayerName = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
"""A stored layer's name; transformer blocks are called by their number, which may be written as one."""


class TargetConfig(Section):
    """One stored teacher layer."""

    teacher: str
    layer: LayerName


class FitConfig(Section):
    """A pre-training run."""

    about: str = Field(default="", json_schema_extra=FREE)
    """One line for people."""
    student: Student = MinkUNetConfig()
    targets: Literal["auto"] | tuple[TargetConfig, ...] = "auto"
    """What each of the student's levels learns from, in the same order. Auto: the last stored layers of the first
    teacher, as many as there are levels."""
    objectives: ObjectivesConfig = ObjectivesConfig()
    data: DataConfig = DataConfig()
    optim: Optim = AdamWConfig()
    schedule: Schedule = CosineConfig()
    train: TrainConfig = TrainConfig(epochs=25)

    @model_validator(mode="after")
    def _sections_agree(self) -> FitConfig:
        levels = len(self.student.levels)
        if self.targets != "auto" and len(self.targets) != levels:
            raise ValueError(f"targets has {len(self.targets)} layers for the {levels} levels of student.levels")
        if self.data.batch_size % self.train.accumulate:
            raise ValueError(
                f"data.batch_size = {self.data.batch_size} cannot be split into "
                f"train.accumulate = {self.train.accumulate} equal parts"
            )
        if self.data.frustum_only and self.objectives.uses_future:
            raise ValueError(
                f"objectives.occupancy.kind = {self.objectives.occupancy.kind} forecasts the whole scene, "
                "which data.frustum_only = true cuts away"
            )
        occupancy = self.objectives.occupancy
        if occupancy.kind == "also" and occupancy.intensity_weight and "intensity" not in self.student.channels:
            raise ValueError(
                f"objectives.occupancy.intensity_weight = {occupancy.intensity_weight:g} asks for the intensity, "
                "which student.channels leaves out"
            )
        if self.schedule.kind == "cosine" and self.schedule.final_lr > self.optim.lr:
            raise ValueError(f"schedule.final_lr = {self.schedule.final_lr:g} is above optim.lr = {self.optim.lr:g}")
        return self
