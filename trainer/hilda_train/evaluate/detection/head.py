"""The last layers of a detection head, their loss, and the way back from maps to boxes.

Legend: B frames, M boxes, K classes, D trunk channels, H = W grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_train.evaluate.detection.protocol import DetectionProtocol
from hilda_train.evaluate.detection.targets import FIRST_HEAT, REGRESSED, BoxTarget, heat_map, regression_target
from hilda_train.evaluate.heads.bev import BevHead, Seen
from hilda_train.objectives.bev import BevGrid
from hilda_train.students import Student

_VELOCITY = slice(8, 10)
_LOG_SIZE_LIMIT = 5.0  # e^5 m = 148 m


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Boxes of one frame, best first."""

    label: NDArray[np.int64]  # (M,)
    score: NDArray[np.float64]  # (M,)
    centre_m: NDArray[np.float64]  # (M, 3)
    size_m: NDArray[np.float64]  # (M, 3)
    yaw_rad: NDArray[np.float64]  # (M,)
    velocity_mps: NDArray[np.float64]  # (M, 2)


class DetectionHead(BevHead[BoxTarget]):
    """The trunk, then a heat map for each class and the numbers of a box, shared by the classes.

    Args:
        student: the backbone.
        classes: K.
        protocol: sizes and weights.
        frozen: the backbone learns nothing.
    """

    def __init__(self, student: Student, classes: int, protocol: DetectionProtocol, *, frozen: bool) -> None:
        super().__init__(student, protocol.bev, 1, frozen=frozen)
        self.protocol = protocol
        width = protocol.bev.channels
        self.heat = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 1))
        self.box = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, REGRESSED, 1))
        for last, bias in ((self.heat[-1], FIRST_HEAT), (self.box[-1], 0.0)):
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            nn.init.constant_(last.bias, bias)

    def maps(self, seen: Sequence[Seen[BoxTarget]]) -> tuple[Tensor, Tensor]:
        """(B, K, H, W) logits of the heat maps, and (B, REGRESSED, H, W)."""
        x = self.map(seen)
        return self.heat(x), self.box(x)

    def loss(self, seen: Sequence[Seen[BoxTarget]]) -> Tensor:
        """() focal loss of the heat maps, plus the weighted error of what is said at the boxes' cells."""
        heat, box = self.maps(seen)
        targets = [each.target for each in seen]
        protocol = self.protocol
        wanted = torch.stack(
            [
                heat_map(each, heat.shape[1], self.grid, protocol.min_overlap, protocol.min_radius_cells)
                for each in targets
            ]
        )
        loss = heat_loss(heat, wanted)
        return loss + protocol.box_weight * box_loss(box, targets, self.grid, protocol.velocity_weight)

    @torch.no_grad()
    def predict(self, seen: Seen[BoxTarget]) -> Predicted:
        """Boxes of one frame."""
        heat, box = self.maps([seen])
        return decode(heat[0], box[0], self.grid, self.protocol.max_boxes)


def heat_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """() CornerNet's focal loss: -(1 - p)^2 log p where a box is, -(1 - y)^4 p^2 log(1 - p) elsewhere, per box.

    Args:
        logits: (B, K, H, W).
        wanted: (B, K, H, W) y, one exactly where a box is.
    """
    here = wanted == 1
    p = logits.sigmoid()
    hit = F.logsigmoid(logits) * (1 - p).square()
    miss = F.logsigmoid(-logits) * p.square() * (1 - wanted).pow(4)
    return -torch.where(here, hit, miss).sum() / here.sum().clamp(min=1)


def box_loss(box: Tensor, targets: Sequence[BoxTarget], grid: BevGrid, velocity_weight: float) -> Tensor:
    """() mean over boxes of the absolute errors of their numbers; unknown velocities are left out.

    Args:
        box: (B, REGRESSED, H, W).
        targets: B.
        grid: cells.
        velocity_weight: of the velocity's errors.
    """
    errors = []
    for maps, target in zip(box, targets, strict=True):
        cells, wanted = regression_target(target, grid)
        error = (maps.flatten(1).T.index_select(0, cells) - wanted.nan_to_num()).abs() * ~wanted.isnan()
        weight = torch.ones(REGRESSED, device=box.device)
        weight[_VELOCITY] = velocity_weight
        errors.append(error @ weight)
    together = torch.cat(errors)
    return together.sum() / max(1, len(together))


def decode(heat: Tensor, box: Tensor, grid: BevGrid, max_boxes: int) -> Predicted:
    """Boxes at the heat maps' peaks: cells that none of their eight neighbours exceeds.

    Args:
        heat: (K, H, W) logits.
        box: (REGRESSED, H, W).
        grid: cells.
        max_boxes: how many are kept.
    """
    peak = heat >= F.max_pool2d(heat[None], 3, stride=1, padding=1)[0]
    flat = torch.where(peak, heat, torch.full_like(heat, -torch.inf)).flatten()
    score, index = flat.topk(min(max_boxes, int(peak.sum())))
    label, cell = index // grid.cells**2, index % grid.cells**2
    said = box.flatten(1)[:, cell].T.double()
    corner = torch.stack((cell // grid.cells, cell % grid.cells), dim=1)
    centre = (corner + said[:, :2]) * grid.cell_m - grid.range_m
    return Predicted(
        label.cpu().numpy(),
        score.sigmoid().double().cpu().numpy(),
        torch.cat((centre, said[:, 2:3]), dim=1).cpu().numpy(),
        said[:, 3:6].clamp(max=_LOG_SIZE_LIMIT).exp().cpu().numpy(),
        torch.atan2(said[:, 7], said[:, 6]).cpu().numpy(),
        said[:, _VELOCITY].cpu().numpy(),
    )
