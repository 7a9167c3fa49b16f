"""Semantic segmentation on a pre-trained backbone: a linear head, alone (probe) or with the backbone (fine-tuning).

The head reads the backbone's last level. It works on the level's own rows, one for each voxel, and a point takes its
voxel's prediction: the same numbers as at the points, for a third of the work.

Legend: N points, M rows of the last level (voxels), C channels, K classes.
"""

from __future__ import annotations

import re
from typing import Any, Self

import torch
from torch import Tensor, nn

from hilda_train.evaluate.head import Encoded, Judged, SegmentationHead
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
    """A backbone and a linear head.

    Args:
        student: the backbone.
        classes: K.
        norm: batch normalisation before the linear layer.
        frozen: the backbone learns nothing and stays in evaluation mode.
    """

    def __init__(self, student: Student, classes: int, *, norm: bool, frozen: bool) -> None:
        super().__init__(student, frozen=frozen)
        self.head = SegmentationHead(student.channels[-1], classes, norm=norm, steady=frozen)

    def encode(self, batch: LabelledBatch, protocol: Protocol) -> Encoded:
        """The backbone's last level of a batch, with its labels; without a gradient where the backbone is frozen."""
        with torch.set_grad_enabled(not self.frozen):
            level = self.student.encode(batch.points)[-1]
        if protocol.loss_at == "points":
            return Encoded(level.feats, level.point_row, batch.target)
        return Encoded(level.feats, None, one_label_a_row(level.point_row, batch.target))

    def judge(self, sweep: LabelledSweep, device: torch.device) -> Judged:
        """Predict a whole recorded sweep.

        Raises:
            TrainError: a prediction is not finite.
        """
        whole = sweep.whole
        assert whole is not None
        truth, in_camera = whole.truth.numpy(), whole.in_camera.numpy()
        if not len(truth):
            return Judged(sweep.key, truth, truth, in_camera)
        level = self.student.encode(sweep.points.to(device))[-1]
        predicted = self.head.classes_of(level.feats, sweep.key)[level.point_row].cpu()[whole.reads]
        return Judged(sweep.key, truth, predicted.numpy(), in_camera, borrowed=whole.borrowed)


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


def build_stage_optimizer(model: nn.Module, stage: StageConfig) -> torch.optim.Optimizer:
    """An optimiser with the rates that a stage gives to head and layers."""
    groups: list[dict[str, Any]] = []
    for group in parameter_groups(model, stage.optim.weight_decay, stage.optim.decay_all):
        by_factor: dict[float, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in group["params"]:
            by_factor.setdefault(rate_factor(model, name, stage), []).append((name, parameter))
        groups += [{**group, "params": named, "rate_factor": factor} for factor, named in by_factor.items()]
    return optimizer_of(groups, stage.optim)


def rate_factor(model: nn.Module, name: str, stage: StageConfig) -> float:
    """By how much a parameter's rate differs from the stage's.

    The head's is `head_rate`. With D numbered layers, layer i of 0 .. D - 1 has layer_decay^(D - i) and what comes
    before it layer_decay^(D + 1), as ScaLR counts; a backbone without numbered layers has one rate.
    """
    if not isinstance(model, OnBackbone) or not name.startswith("student."):
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
