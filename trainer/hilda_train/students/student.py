"""The protocol that every LiDAR backbone is put behind."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from hilda_train.students.points import PointBatch


class Student(nn.Module, ABC):
    """A LiDAR backbone: points in, features of its last levels at those points out.

    Attributes:
        channels: width C_l of each level returned, in the order of `forward`.
    """

    channels: tuple[int, ...]

    @abstractmethod
    def forward(self, batch: PointBatch) -> list[Tensor]:
        """See a batch of sweeps.

        Args:
            batch: N points of one or several sweeps.

        Returns:
            One (N, C_l) per level, from the earliest to the last (F_{L-K}, ..., F_L of HilDA, section 3.2), rows in
            the order of the batch's points.

        Raises:
            TrainError: the batch lacks what this backbone needs, or its points leave the range that it covers.
        """
