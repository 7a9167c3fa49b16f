"""Semantic segmentation on a pre-trained backbone: a linear head, alone (probe) or with the backbone (fine-tuning).

The head reads the backbone's last level. It works on the level's own rows, one for each voxel, and a point takes its
voxel's prediction: the same numbers as at the points, for a third of the work.

Legend: N points, M rows of the last level (voxels), C channels, K classes, F points of a recorded sweep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_schema.errors import TrainError
from hilda_train.data.loading import made
from hilda_train.evaluate.classes import IGNORED
from hilda_train.evaluate.lovasz import lovasz_softmax
from hilda_train.evaluate.protocols import Protocol, StageConfig
from hilda_train.evaluate.sweeps import LabelledBatch, LabelledSweep
from hilda_train.optim import optimizer_of, parameter_groups
from hilda_train.students import Student

_NUMBERED = re.compile(r"(?:spatial_mix|channel_mix)\.(\d+)\.")  # a WaffleIron's layers


class OnBackbone(nn.Module):
    """A backbone with something on top of it.

    Args:
        student: the backbone.
        frozen: the backbone learns nothing and stays in evaluation mode.
    """

    def __init__(self, student: Student, *, frozen: bool) -> None:
        super().__init__()
        self.student, self.frozen = student, frozen
        student.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but never of a frozen backbone."""
        super().train(mode)
        if self.frozen:
            self.student.eval()
        return self


class Segmenter(OnBackbone):
    """A backbone and a linear head that starts from zero.

    Args:
        student: the backbone.
        classes: K.
        norm: batch normalisation before the linear layer.
        frozen: the backbone learns nothing and stays in evaluation mode.
    """

    def __init__(self, student: Student, classes: int, *, norm: bool, frozen: bool) -> None:
        super().__init__(student, frozen=frozen)
        channels = student.channels[-1]
        linear = nn.Linear(channels, classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        # A frozen backbone's statistics stand still: their plain mean is exact after few steps too, where the usual
        # moving average would still hold on to the mean 0 and variance 1 that it starts from.
        self.norm: nn.Module = nn.BatchNorm1d(channels, momentum=None if frozen else 0.1) if norm else nn.Identity()
        self.linear = linear

    def head(self, feats: Tensor) -> Tensor:
        """(M, C) features -> (M, K) logits."""
        logits: Tensor = self.linear(self.norm(feats))
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What the head learns from: features, and the labels that read them."""

    feats: Tensor  # (M, C)
    rows: Tensor | None  # (N,) int64 row of each label; None: one label a row, in order
    target: Tensor  # (N,) or (M,) int64 classes, `IGNORED` for none

    def to(self, device: torch.device) -> Encoded:
        """The same on a device."""
        rows = None if self.rows is None else self.rows.to(device)
        return Encoded(self.feats.to(device), rows, self.target.to(device))

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in (self.feats, self.rows, self.target) if tensor is not None)

    @classmethod
    def cat(cls, parts: Iterable[Encoded]) -> Encoded:
        """Join; all with rows or none."""
        parts = list(parts)
        starts = np.cumsum([0] + [len(part.feats) for part in parts])
        rows = [part.rows + int(start) for part, start in zip(parts, starts, strict=False) if part.rows is not None]
        return cls(
            torch.cat([part.feats for part in parts]),
            torch.cat(rows) if rows else None,
            torch.cat([part.target for part in parts]),
        )


def encode(model: Segmenter, batch: LabelledBatch, protocol: Protocol) -> Encoded:
    """The backbone's last level of a batch, with its labels; without a gradient where the backbone is frozen."""
    with torch.set_grad_enabled(not model.frozen):
        level = model.student.encode(batch.points)[-1]
    if protocol.loss_at == "points":
        return Encoded(level.feats, level.point_row, batch.target)
    return Encoded(level.feats, None, one_label_a_row(level.point_row, batch.target))


def one_label_a_row(point_row: Tensor, target: Tensor) -> Tensor:
    """(M,) class of each row's first point.

    Args:
        point_row: (N,) int64; every row of 0 to M - 1 occurs.
        target: (N,).
    """
    ordered, order = point_row.sort(stable=True)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    return target[order[starts]]


def segmentation_loss(model: Segmenter, encoded: Encoded, lovasz: float) -> Tensor:
    """() cross-entropy plus weighted Lovász-softmax over the labels that count; zero where there is none."""
    logits = model.head(encoded.feats.float())
    if encoded.rows is not None:
        logits = logits.index_select(0, encoded.rows)
    counting = (encoded.target != IGNORED).nonzero()[:, 0]
    logits, target = logits.index_select(0, counting), encoded.target[counting]
    if not len(target):
        return logits.sum()
    loss = F.cross_entropy(logits, target)
    if lovasz:
        loss = loss + lovasz * lovasz_softmax(logits.softmax(dim=1), target)
    return loss


def build_stage_optimizer(model: OnBackbone, stage: StageConfig) -> torch.optim.Optimizer:
    """An optimiser with the rates that a stage gives to head and layers."""
    groups: list[dict[str, Any]] = []
    for group in parameter_groups(model, stage.optim.weight_decay, stage.optim.decay_all):
        by_factor: dict[float, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in group["params"]:
            by_factor.setdefault(rate_factor(model, name, stage), []).append((name, parameter))
        groups += [{**group, "params": named, "rate_factor": factor} for factor, named in by_factor.items()]
    return optimizer_of(groups, stage.optim)


def rate_factor(model: OnBackbone, name: str, stage: StageConfig) -> float:
    """By how much a parameter's rate differs from the stage's.

    The head's is `head_rate`. With D numbered layers, layer i of 0 .. D - 1 has layer_decay^(D - i) and what comes
    before it layer_decay^(D + 1), as ScaLR counts; a backbone without numbered layers has one rate.
    """
    if not name.startswith("student."):
        return stage.head_rate
    layers = depth_of(model.student)
    if not layers:
        return 1.0
    found = _NUMBERED.search(name)
    return float(stage.layer_decay ** (layers - int(found[1]) if found else layers + 1))


def depth_of(student: Student) -> int:
    """Numbered layers of a backbone; 0 where they have no numbers."""
    found = [_NUMBERED.search(name) for name, _ in student.named_parameters()]
    return max((int(each[1]) + 1 for each in found if each), default=0)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One test sweep."""

    key: str
    truth: NDArray[np.int64]  # (F,) classes, `IGNORED` for none
    predicted: NDArray[np.int64]  # (F,)
    borrowed: int  # points with the prediction of the nearest one that the student saw


@torch.no_grad()
def judge(model: Segmenter, sweeps: Iterable[LabelledSweep], device: torch.device) -> Iterator[Judged]:
    """Predict whole recorded sweeps, one by one.

    Raises:
        HildaError: a sweep cannot be read.
        TrainError: a prediction is not finite.
    """
    model.eval()
    for sweep in made(sweeps):
        whole = sweep.whole
        assert whole is not None
        if not len(whole.truth):
            yield Judged(sweep.key, whole.truth.numpy(), whole.truth.numpy(), 0)
            continue
        level = model.student.encode(sweep.points.to(device))[-1]
        logits = model.head(level.feats.float())
        if not bool(logits.isfinite().all()):
            raise TrainError(f"a prediction is not finite, frame {sweep.key}", "lower the learning rate")
        predicted = logits.argmax(dim=1)[level.point_row].cpu()[whole.reads]
        yield Judged(sweep.key, whole.truth.numpy(), predicted.numpy(), whole.borrowed)
