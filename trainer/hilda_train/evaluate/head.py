"""A linear segmentation head, whatever its features come from: what it learns from, its loss, what it says.

Legend: N points, M rows of features, C channels, K classes, F points that are judged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_schema.errors import TrainError
from hilda_train.evaluate.classes import IGNORED
from hilda_train.evaluate.lovasz import lovasz_softmax
from hilda_train.evaluate.metrics import Confusion


class SegmentationHead(nn.Module):
    """A linear layer that starts from zero.

    Args:
        channels: C.
        classes: K.
        norm: batch normalisation before the linear layer.
        steady: the features are those of a frozen model. Their statistics stand still: their plain mean is exact
            after few steps too, where the usual moving average would still hold on to the mean 0 and variance 1 that
            it starts from.
    """

    def __init__(self, channels: int, classes: int, *, norm: bool, steady: bool) -> None:
        super().__init__()
        linear = nn.Linear(channels, classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.norm: nn.Module = nn.BatchNorm1d(channels, momentum=None if steady else 0.1) if norm else nn.Identity()
        self.linear = linear

    def forward(self, feats: Tensor) -> Tensor:
        """(M, C) features -> (M, K) logits."""
        logits: Tensor = self.linear(self.norm(feats))
        return logits

    def classes_of(self, feats: Tensor, key: str) -> Tensor:
        """(M, C) features of a frame, of any precision -> (M,) int64 classes.

        Raises:
            TrainError: a logit is not finite.
        """
        logits: Tensor = self(feats.float())
        if not bool(logits.isfinite().all()):
            raise TrainError(f"a prediction is not finite, frame {key}", "lower the learning rate")
        return logits.argmax(dim=1)


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


def segmentation_loss(head: SegmentationHead, encoded: Encoded, lovasz: float) -> Tensor:
    """() cross-entropy plus weighted Lovász-softmax over the labels that count; zero where there is none."""
    if len(encoded.feats) < 2:  # one row has no variance that batch normalisation could divide by
        return 0 * head.linear.weight.sum()
    logits: Tensor = head(encoded.feats.float())
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


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One test sweep: all of its points, or of a teacher those that a camera sees."""

    key: str
    truth: NDArray[np.int64]  # (F,) classes, `IGNORED` for none
    predicted: NDArray[np.int64]  # (F,)
    in_camera: NDArray[np.bool_]  # (F,) whether a camera sees the point
    borrowed: int = 0  # points with the prediction of the nearest one that the student saw
    unseen: int = 0  # points of the sweep that are not judged, because a teacher says nothing of them


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One test frame, to be saved."""

    key: str
    truth: NDArray[np.int16]  # (F,) classes, -1 for none
    predicted: NDArray[np.int16]  # (F,)


@dataclass(slots=True, eq=False)
class Scores:
    """What the test set says."""

    confusion: Confusion
    in_camera: Confusion  # of the points that a camera sees
    epoch: int = 0  # after which it was tested, counted from 1; 0 where nothing was trained
    keeps: bool = False  # whether predictions are kept
    steps: int = 0
    losses: tuple[float, ...] = ()  # mean of each epoch
    borrowed: int = 0  # points that the student did not see, with the prediction of the nearest one that it did
    unseen: int = 0  # points that no camera sees, of which a teacher says nothing
    predictions: list[Prediction] = field(default_factory=list)  # of the test frames

    @classmethod
    def of(cls, classes: int, *, epoch: int = 0, keeps: bool = False) -> Scores:
        """Before the first test sweep."""
        return cls(Confusion(classes), Confusion(classes), epoch, keeps)

    def add(self, judged: Judged) -> None:
        """Count a test sweep."""
        self.confusion.add(judged.truth, judged.predicted)
        self.in_camera.add(judged.truth[judged.in_camera], judged.predicted[judged.in_camera])
        self.borrowed += judged.borrowed
        self.unseen += judged.unseen
        if self.keeps:
            truth, predicted = judged.truth.astype(np.int16), judged.predicted.astype(np.int16)
            self.predictions.append(Prediction(judged.key, truth, predicted))
