"""The last layer of an occupancy head and its loss.

Legend: B items, T steps (the present and the future ones), Z layers, K classes, H = W grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_train.evaluate.heads.bev import BevHead, Seen
from hilda_train.evaluate.heads.items import Tensors
from hilda_train.evaluate.semantic_occupancy.labels import UNKNOWN
from hilda_train.evaluate.semantic_occupancy.protocol import OccupancyProtocol
from hilda_train.students import Student


@dataclass(frozen=True, slots=True, eq=False)
class OccupancyTarget(Tensors):
    """Of one frame, as augmented."""

    cells: Tensor  # (T, Z, H, W) int8: a class, K for free, `UNKNOWN`


class OccupancyHead(BevHead[OccupancyTarget]):
    """The trunk over the past and the present sweep, then a class for every layer and step.

    Args:
        student: the backbone.
        classes: K.
        protocol: sizes.
        frozen: the backbone learns nothing.
    """

    def __init__(self, student: Student, classes: int, protocol: OccupancyProtocol, *, frozen: bool) -> None:
        super().__init__(student, protocol.bev, 2, frozen=frozen)
        self.shape = (protocol.horizon + 1, protocol.layers, classes + 1)
        width = protocol.bev.channels
        self.occupied_weight = protocol.occupied_weight
        self.out = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1),
            nn.ReLU(),
            nn.Conv2d(2 * width, self.shape[0] * self.shape[1] * self.shape[2], 1),
        )

    def logits(self, seen: Sequence[Seen[OccupancyTarget]]) -> Tensor:
        """(B, T, Z, K + 1, H, W)."""
        side = self.grid.cells
        out: Tensor = self.out(self.map(seen)).view(len(seen), *self.shape, side, side)
        return out

    def loss(self, seen: Sequence[Seen[OccupancyTarget]]) -> Tensor:
        """() cross-entropy over the cells that are known, occupied ones weighing more."""
        logits = self.logits(seen).movedim(3, -1)
        target = torch.stack([each.target.cells for each in seen]).long()
        known = target != UNKNOWN
        weight = torch.full((self.shape[2],), self.occupied_weight, device=logits.device)
        weight[-1] = 1.0
        if not bool(known.any()):
            return logits.sum() * 0
        return F.cross_entropy(logits[known], target[known], weight)

    @torch.no_grad()
    def predict(self, seen: Seen[OccupancyTarget]) -> Tensor:
        """(T, Z, H, W) int8 class of every cell, K for free."""
        return self.logits([seen])[0].argmax(dim=2).to(torch.int8)
