"""What a detection head learns: CenterPoint's heat maps, and what stands beside them (Yin et al., CVPR 2021).

Legend: M boxes of a frame, K classes, H = W grid cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilda_schema.boxes import Boxes
from hilda_train.data.augment import Augmentation
from hilda_train.evaluate.heads.items import Tensors
from hilda_train.objectives.bev import BevGrid

REGRESSED = 10
"""Numbers of a box: offset x, y [cells]; height of the centre [m]; log length, width, height; cosine and sine of the
front's direction; velocity x, y [m/s]."""


@dataclass(frozen=True, slots=True, eq=False)
class BoxTarget(Tensors):
    """Boxes of one frame that count, as augmented."""

    label: Tensor  # (M,) int64 class
    centre_m: Tensor  # (M, 3) float32
    size_m: Tensor  # (M, 3) length, width, height
    front: Tensor  # (M, 2) unit vector
    velocity_mps: Tensor  # (M, 2) NaN where it is not known

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Tensor) -> BoxTarget:
        """Some of the boxes: (K,) int64 rows or a (M,) mask."""
        return BoxTarget(*(getattr(self, each.name)[rows] for each in fields(self)))


def box_target(boxes: Boxes, label: NDArray[np.int64], augmentation: Augmentation) -> BoxTarget:
    """Boxes as the augmented sweep has them: turned, mirrored and grown with the points.

    Args:
        boxes: M.
        label: (M,) classes.
        augmentation: the sweep's.
    """
    matrix = augmentation.matrix
    scale = float(np.cbrt(abs(np.linalg.det(matrix))))
    yaw = boxes.yaw_rad
    front = np.stack([np.cos(yaw), np.sin(yaw)], axis=1) @ matrix[:2, :2].T / scale
    return BoxTarget(
        label=torch.from_numpy(label),
        centre_m=_float32(boxes.centre_m @ matrix.T),
        size_m=_float32(boxes.size_m * scale),
        front=_float32(front),
        velocity_mps=_float32(boxes.velocity_mps @ matrix[:2, :2].T),
    )


def _float32(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


def heat_map(target: BoxTarget, classes: int, grid: BevGrid, min_overlap: float, min_radius_cells: int) -> Tensor:
    """A Gaussian around every box's cell, one where the box is; the highest counts where several meet.

    Args:
        target: M boxes inside the grid.
        classes: K.
        grid: cells.
        min_overlap: see `reach_cells`.
        min_radius_cells: the least reach.

    Returns:
        (K, H, W) in [0, 1].
    """
    heat = torch.zeros((classes, grid.cells, grid.cells), device=target.centre_m.device)
    along = torch.arange(grid.cells, device=heat.device)
    cells, _ = grid.cell_of(target.centre_m)
    reach = reach_cells(target.size_m[:, :2] / grid.cell_m, min_overlap).floor().clamp(min=min_radius_cells)
    for label, cell, radius in zip(target.label.tolist(), cells.tolist(), reach.tolist(), strict=True):
        sigma = (2 * radius + 1) / 6
        profiles = []
        for centre in divmod(cell, grid.cells):
            offset = (along - centre).float()
            profiles.append(torch.exp(-offset.square() / (2 * sigma**2)) * (offset.abs() <= radius))
        heat[label] = torch.maximum(heat[label], profiles[0][:, None] * profiles[1])
    return heat


def reach_cells(size_cells: Tensor, min_overlap: float) -> Tensor:
    """(M,) by how much both corners of a rectangle may be off for an IoU of at least `min_overlap`.

    The least of three cases (Law and Deng, CornerNet, ECCV 2018): moved, shrunk and grown.

    Args:
        size_cells: (M, 2) length and width.
        min_overlap: in (0, 1].
    """
    a, b = size_cells.unbind(1)
    perimeter, area, o = a + b, a * b, min_overlap
    # moved by r along both axes: (a - r)(b - r) / (2 a b - (a - r)(b - r)) = o
    moved = (perimeter - torch.sqrt(perimeter.square() - 4 * area * (1 - o) / (1 + o))) / 2
    # smaller by 2 r: (a - 2 r)(b - 2 r) / (a b) = o
    smaller = (perimeter - torch.sqrt(perimeter.square() - 4 * area * (1 - o))) / 4
    # larger by 2 r: a b / ((a + 2 r)(b + 2 r)) = o
    larger = (-perimeter + torch.sqrt(perimeter.square() + 4 * area * (1 - o) / o)) / 4
    return torch.minimum(torch.minimum(moved, smaller), larger)


def regression_target(target: BoxTarget, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """(M,) int64 flat cell of every box, and (M, REGRESSED) what is to be said there; NaN for an unknown velocity."""
    cells, _ = grid.cell_of(target.centre_m)
    position = (target.centre_m[:, :2] + grid.range_m) / grid.cell_m
    columns = (position - position.floor(), target.centre_m[:, 2:], target.size_m.log(), target.front)
    return cells, torch.cat((*columns, target.velocity_mps), dim=1)


FIRST_HEAT = -math.log((1 - 0.1) / 0.1)
"""What the heat map's last layer starts from: a tenth everywhere, so that the many empty cells do not drown the first
steps (Lin et al., Focal loss, ICCV 2017)."""
