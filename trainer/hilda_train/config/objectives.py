"""The terms of the loss, their weights and options; `objectives/` holds the equations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hilda_train.config.occupancy import NoOccupancyConfig, Occupancy
from hilda_train.config.section import Count, NotNegative, Positive, Section


class HeadConfig(Section):
    """A projection head: linear layers with activations between them; thrown away after pre-training."""

    layers: Count = 3
    """1 is ScaLR's linear head, 3 the MLP of CleverDistiller and HilDA."""
    hidden: Count = 2048
    activation: Literal["gelu", "relu"] = "gelu"


class PointConfig(Section):
    """Point distillation: the student's feature at a point against the teacher's at its pixel."""

    weight: NotNegative = 1.0
    distance: Literal["cosine", "centred_cosine", "norm", "l2", "kl"] = "cosine"
    mean_over: Literal["cameras", "pairs"] = "cameras"
    """Every camera counts the same (HilDA), or every point-pixel pair does (ScaLR)."""
    head: HeadConfig = HeadConfig()


class GlobalContextConfig(Section):
    """Scene token of the student against the teacher's; weight 0 leaves it out."""

    weight: NotNegative = 0.0
    pooling: Literal["max", "attention", "per_view"] = "max"
    teacher: str = "auto"
    """Whose global token; auto: the teacher of the last target."""
    head: HeadConfig = HeadConfig()


class RelationalConfig(Section):
    """Similarities between points against similarities between their pixels; weights 0 leave it out."""

    cross_weight: NotNegative = 0.0
    """Point-to-pixel against pixel-to-pixel."""
    intra_weight: NotNegative = 0.0
    """Point-to-point against pixel-to-pixel."""
    pairs: Annotated[int, Field(ge=2)] = 2048
    """Pairs drawn per camera: the matrices have pairs^2 entries."""


class ContrastiveConfig(Section):
    """Point-to-pixel InfoNCE on the last target, with linear heads of its own on both sides; weight 0 leaves it out."""

    weight: NotNegative = 0.0
    temperature: Positive = 0.07
    pairs: Annotated[int, Field(ge=2)] = 4096
    """Pairs drawn per batch."""
    channels: Count = 64
    """Common width that both heads project to."""


class ObjectivesConfig(Section):
    """The loss is the weighted sum of these terms."""

    point: PointConfig = PointConfig()
    global_context: GlobalContextConfig = GlobalContextConfig()
    occupancy: Occupancy = NoOccupancyConfig()
    relational: RelationalConfig = RelationalConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()

    @model_validator(mode="after")
    def _learns_something(self) -> ObjectivesConfig:
        if not (self.uses_pairs or self.global_context.weight or self.occupancy.kind != "none"):
            raise ValueError("no objective has a weight: set objectives.point.weight, or another's")
        return self

    @property
    def uses_pairs(self) -> bool:
        """Whether a term compares points with pixels, so that teacher layers are needed."""
        relational = self.relational.cross_weight + self.relational.intra_weight
        return self.point.weight + relational + self.contrastive.weight > 0

    @property
    def uses_future(self) -> bool:
        """Whether a term needs the frames before and after."""
        return self.occupancy.kind in {"diffusion", "bce"}
