"""The last layers of a flow head and their loss: a point's own feature and what both sweeps look like around it.

Legend: B items, N points of the first sweep, C student channels, D trunk channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_train.evaluate.flow.metrics import GROUPS
from hilda_train.evaluate.heads.bev import BevHead, Seen
from hilda_train.evaluate.heads.items import Tensors
from hilda_train.evaluate.heads.protocol import HeadProtocol
from hilda_train.students import Student

_MATCHED = 16  # channels in which cells are compared
_REACH = 5  # cells of twice the size: 8 m of quick's, 16 m/s between keyframes


@dataclass(frozen=True, slots=True, eq=False)
class FlowTarget(Tensors):
    """Of one pair of sweeps, as augmented: what the student's N points of the first one do."""

    xyz_m: Tensor  # (N, 3) float32
    flow_m: Tensor  # (N, 3) float32
    group: Tensor  # (N,) int64, see `metrics.group_of`
    interval_s: float
    # To judge by: all F points as recorded; no rows else.
    true_m: Tensor  # (F, 3) float32
    true_group: Tensor  # (F,) int64
    reads: Tensor  # (F,) int64 which of the N points each takes its prediction from


class FlowHead(BevHead[FlowTarget]):
    """The trunk over both sweeps, read at each point of the first, and three layers that say its velocity.

    Coarse cells of both sweeps are compared within a reach, so that a match need not be found by convolutions alone.

    Args:
        student: the backbone.
        protocol: sizes.
        frozen: the backbone learns nothing.
    """

    reads_points_of = 0

    def __init__(self, student: Student, protocol: HeadProtocol, *, frozen: bool) -> None:
        super().__init__(student, protocol.bev, 2, frozen=frozen)
        width, channels = protocol.bev.channels, student.channels[-1]
        self.feature = nn.Linear(2 * channels + 1, _MATCHED, bias=False)
        self.shifts = nn.Linear((2 * _REACH + 1) ** 2, 2 * width)
        self.point_norm = nn.BatchNorm1d(channels, momentum=None if frozen else 0.1)
        self.point = nn.Sequential(
            nn.Linear(channels + width + 3, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2 * width), nn.ReLU()
        )
        self.velocity = nn.Linear(2 * width, 3)
        nn.init.zeros_(self.velocity.weight)  # starts from standing still
        nn.init.zeros_(self.velocity.bias)

    def matched(self, sweeps: Sequence[tuple[Tensor, Tensor]], items: int) -> Tensor:
        """How alike each cell of the first sweep is to the cells of the second one around it (a cost volume).

        Args:
            sweeps: both: cells (K,) int64 over all items, and their values (K, 2 C + 1).
            items: B.

        Returns:
            (B, 2 D, cells / 2, cells / 2), zero where the first sweep has no point.
        """
        side = self.grid.cells
        maps = []
        for cells, values in sweeps:
            flat = values.new_zeros((items * side**2, _MATCHED)).index_add(0, cells, self.feature(values))
            dense = flat.view(items, side, side, _MATCHED).permute(0, 3, 1, 2)
            maps.append(F.normalize(F.avg_pool2d(dense, 2), dim=1, eps=1e-3))
        half = side // 2
        item, cell = sweeps[0][0] // side**2, sweeps[0][0] % side**2
        occupied = torch.unique((item * half + cell // side // 2) * half + cell % side // 2)
        first, second = maps
        volume: Tensor = self.shifts(correlation(first, second, occupied, _REACH))
        flat = volume.new_zeros((items * half**2, volume.shape[1])).index_add(0, occupied, volume)
        return flat.view(items, half, half, -1).permute(0, 3, 1, 2)

    def flows(self, seen: Sequence[Seen[FlowTarget]]) -> list[Tensor]:
        """B x (N, 3) motion until the second sweep [m]; zero outside of the map."""
        maps = self.map(seen).flatten(2)
        rows = torch.cat([each.rows for each in seen if each.rows is not None])
        normed = self.point_norm(rows) if len(rows) > 1 or not self.training else rows
        inputs, shares = [], []
        for each, flat, own in zip(seen, maps, normed.split([_rows(each) for each in seen]), strict=True):
            xyz_m = each.target.xyz_m
            cell, inside = self.grid.cell_of(xyz_m)
            around = flat[:, torch.where(inside, cell, 0)].T
            place = (xyz_m[:, :2] + self.grid.range_m) / self.grid.cell_m
            offset = torch.cat((place - place.floor() - 0.5, xyz_m[:, 2:] / 2), dim=1)
            inputs.append(torch.cat((own[each.point_row], around, offset), dim=1))
            shares.append((inside * each.target.interval_s)[:, None])
        velocity = self.velocity(self.point(torch.cat(inputs)))
        return list((velocity * torch.cat(shares)).split([len(each) for each in shares]))

    def loss(self, seen: Sequence[Seen[FlowTarget]]) -> Tensor:
        """() mean over the groups that occur of their mean end point error: what the metric is made of."""
        predicted = torch.cat(self.flows(seen))
        true = torch.cat([each.target.flow_m for each in seen])
        group = torch.cat([each.target.group for each in seen])
        # A norm whose gradient is finite where the error is zero.
        error = ((predicted - true).square().sum(dim=1) + 1e-8).sqrt()
        means = [error[group == k].mean() for k in range(len(GROUPS)) if bool((group == k).any())]
        return torch.stack(means).mean() if means else error.sum() * 0

    @torch.no_grad()
    def predict(self, seen: Seen[FlowTarget]) -> Tensor:
        """(F, 3) motion of all recorded points of the first sweep."""
        return self.flows([seen])[0][seen.target.reads]


def correlation(first: Tensor, second: Tensor, rows: Tensor, reach: int) -> Tensor:
    """Products of some cells with the cells of another map around them.

    Args:
        first: (B, C, H, W).
        second: the same; nothing lies beyond its border.
        rows: (K,) int64 cells of the first map, (item * H + row) * W + column.
        reach: R, in cells.

    Returns:
        (K, (2 R + 1)^2): column (i + R) (2 R + 1) + j + R is with the cell i rows and j columns further.
    """
    channels, height, width = first.shape[1:]
    wide = width + 2 * reach
    padded = F.pad(second, (reach, reach, reach, reach)).permute(0, 2, 3, 1).reshape(-1, channels)
    item, cell = rows // (height * width), rows % (height * width)
    start = (item * (height + 2 * reach) + cell // width) * wide + cell % width
    steps = torch.arange(2 * reach + 1, device=rows.device)
    around = start[:, None] + (steps[:, None] * wide + steps).flatten()
    own = first.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, rows)
    others = padded.index_select(0, around.flatten()).view(len(rows), -1, channels)
    return (others @ own[:, :, None])[:, :, 0]


def _rows(seen: Seen[FlowTarget]) -> int:
    assert seen.rows is not None
    return len(seen.rows)
