"""The protocol that every LiDAR backbone is put behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hilda_train.students.points import PointBatch


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """Features of one level where the backbone has them, and which of them each point reads.

    The points of one voxel read one row. What is done to features row by row (a projection head, a maximum) is
    therefore done once for each row, not once for each point: the same numbers for a third of the work or less.
    """

    feats: Tensor  # (M, C) a row for each voxel, or for each point
    item: Tensor  # (M,) int64 batch item of each row
    point_row: Tensor  # (N,) int64 row that each point reads; every row has a point

    @classmethod
    def of_points(cls, feats: Tensor, batch: PointBatch) -> Level:
        """A level with a row, (N, C), for each point."""
        return cls(feats, batch.batch_index, torch.arange(len(feats), device=feats.device))

    def at_points(self) -> Tensor:
        """(N, C) features at the points."""
        return self.feats.index_select(0, self.point_row)


class Student(nn.Module, ABC):
    """A LiDAR backbone: points in, features of its last levels at those points out.

    Attributes:
        channels: width C_l of each level returned, in the order of `forward`.
    """

    channels: tuple[int, ...]

    @abstractmethod
    def encode(self, batch: PointBatch) -> list[Level]:
        """See a batch of sweeps.

        Args:
            batch: N points of one or several sweeps.

        Returns:
            The levels, from the earliest to the last (F_{L-K}, ..., F_L of HilDA, section 3.2).

        Raises:
            TrainError: the batch lacks what this backbone needs, or its points leave the range that it covers.
        """

    def forward(self, batch: PointBatch) -> list[Tensor]:
        """`encode`, read at the points: one (N, C_l) per level, rows in the order of the batch's points."""
        return [level.at_points() for level in self.encode(batch)]
