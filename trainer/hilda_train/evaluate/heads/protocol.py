"""How a head is trained: the same file for every backbone that is compared. Ours; no published line is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from pydantic import Field

from hilda_train.config.data import AugmentConfig, IntensityConfig
from hilda_train.config.section import Count, Positive, Section
from hilda_train.data.augment import AugmentOptions
from hilda_train.evaluate.protocols import StageConfig, read_protocol
from hilda_train.objectives.bev import BevGrid


class BevConfig(Section):
    """The trunk: a bird's-eye map of the backbone's last level, and a few convolutions."""

    range_m: Positive = 51.2
    cell_m: Positive = 0.8
    channels: Count = 64
    blocks: Count = 3
    """Residual blocks on cells of twice the size; their convolutions look 1, 2 and 4 of them far in turn."""

    def grid(self) -> BevGrid:
        """The cells; heights are the task's business."""
        return BevGrid(self.range_m, self.cell_m)


class HeadProtocol(Section):
    """What all heads' protocols say."""

    about: str
    probe: StageConfig
    """The head alone, on a frozen backbone."""
    finetune: StageConfig
    """Head and backbone together."""
    bev: BevConfig = BevConfig()
    augment: AugmentConfig | Literal["none"] = "none"
    """Of training sweeps. None: a frozen backbone sees each sweep once, and what it saw is kept in memory."""
    intensity: dict[str, IntensityConfig] = Field(default_factory=dict)
    """Of sensors that neither the backbone's run nor the published numbers cover."""

    def stage(self, *, frozen: bool) -> StageConfig:
        """The training asked for."""
        return self.probe if frozen else self.finetune

    def augmentation(self) -> AugmentOptions | None:
        """How training sweeps are augmented."""
        return None if self.augment == "none" else AugmentOptions(**self.augment.model_dump())


P = TypeVar("P", bound=HeadProtocol)


def load_head_protocol(kind: type[P], package: str, name_or_path: str, assignments: Sequence[str]) -> P:
    """Read a task's protocol; see `read_protocol`."""
    return read_protocol(kind, package, name_or_path, assignments)
