"""How a backbone is probed and fine-tuned: the published protocols, and one for minutes on a CPU.

The lines differ in head, optimiser, length and in what becomes of classes that do not occur, so a number of one
cannot be held against a number of another. Everything that a file leaves out has the default written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from hilda_train.config.data import AugmentConfig, IntensityConfig
from hilda_train.config.files import described, find_file, read_file, shipped_names
from hilda_train.config.section import Count, NotNegative, Positive, Section
from hilda_train.config.text import assigned, validated
from hilda_train.config.training import Optim, Schedule
from hilda_train.evaluate.metrics import Absent

__all__ = ["Protocol", "StageConfig", "load_protocol", "protocol_names", "read_protocol"]

EXAMPLE = "probe: {epochs: 20}"  # what a file may say, for messages


class StageConfig(Section):
    """One training: of a head on a frozen backbone, or of both."""

    epochs: Positive | None = None
    steps: Count | None = None
    """Instead of epochs: as many for few labels as for all."""
    batch_size: Count
    """Sweeps of a step; all there are, where there are fewer."""
    optim: Optim
    schedule: Schedule
    head_rate: Positive = 1.0
    """The head's learning rate, as a multiple of the backbone's."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a WaffleIron's layer, as a multiple of that of the next one."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of a WaffleIron."""

    @model_validator(mode="after")
    def _ends_once(self) -> StageConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a stage has epochs or steps, one of the two; the other one is null")
        return self

    def length(self, steps_per_epoch: int) -> int:
        """Steps of the whole training."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))


class Protocol(Section):
    """A protocol."""

    about: str
    probe: StageConfig
    finetune: StageConfig
    finetune_all: StageConfig | None = None
    """Fine-tuning on all labels, where it differs from fine-tuning on few."""
    head_norm: bool
    """Batch normalisation before the linear layer."""
    lovasz: NotNegative
    """Weight of the Lovász-softmax loss beside the cross-entropy's 1."""
    loss_at: Literal["voxels", "points"] = "voxels"
    """What the loss is a mean of: one labelled point of each voxel, or all points."""
    augment: AugmentConfig | Literal["none"]
    """Of training sweeps. None: a frozen backbone sees each sweep once, and its features are kept in memory."""
    keep: Literal["float32", "float16"] = "float32"
    """How features are kept."""
    max_points: Count | None = None
    """Training sweeps keep the points nearest to a random one."""
    absent: Absent
    """Classes that neither occur nor are predicted."""
    report: Literal["last", "best"] = "last"
    """The last epoch, or the one that tests best: that chooses on the test set."""
    intensity: dict[str, IntensityConfig] = Field(default_factory=dict)
    """Of sensors that neither the backbone's run nor the published numbers cover."""


def protocol_names() -> tuple[str, ...]:
    """Names of the protocols that are shipped, in alphabetical order."""
    return shipped_names(__name__)


def load_protocol(name_or_path: str, assignments: Sequence[str] = ()) -> Protocol:
    """Read a protocol of segmentation; see `read_protocol`."""
    return read_protocol(Protocol, __name__, name_or_path, assignments)


S = TypeVar("S", bound=Section)


def read_protocol(kind: type[S], package: str, name_or_path: str, assignments: Sequence[str]) -> S:
    """Read a protocol.

    Args:
        kind: its model.
        package: that ships files of that kind.
        name_or_path: a shipped name, or a YAML file.
        assignments: KEY=VALUE over it.

    Raises:
        UsageError: there is none of that name, or something is wrong in it or in an assignment.
    """
    file = find_file(name_or_path, package, "protocol")
    where = described(file, "protocol")
    protocol = validated(kind, read_file(file, where), where, EXAMPLE)
    return validated(kind, assigned(protocol, assignments), "--set", EXAMPLE) if assignments else protocol
