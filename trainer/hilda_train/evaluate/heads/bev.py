"""The trunk of the light heads: the backbone's last level from above, then a few convolutions; and what is kept of it.

Most of the convolutions work on cells of twice the size: what moves between two sweeps half a second apart is found
within some fifteen metres, which would take many layers of small cells.

Legend: B items, S sweeps of an item, M rows of the last level, C student channels, K occupied cells, D trunk channels,
        H = W grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_train.evaluate.heads.items import Item, Tensors
from hilda_train.evaluate.heads.protocol import BevConfig
from hilda_train.evaluate.segment import OnBackbone
from hilda_train.objectives.bev import BevGrid, BevHistory, SweepFeatures, collapse_sweep
from hilda_train.students import Student
from hilda_train.students.points import PointBatch

T = TypeVar("T", bound=Tensors)
_DILATIONS = (1, 2, 4)
_GROUPS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Seen(Tensors, Generic[T]):
    """What a backbone saw of one item: all that a head learns from, so that it can be kept."""

    cells: tuple[Tensor, ...]  # S x (K,) int64
    values: tuple[Tensor, ...]  # S x (K, 2 C + 1) mean, maximum, one
    rows: Tensor | None  # (M, C) the rows of one sweep, where the head reads points of it
    point_row: Tensor | None  # (N,) int64 the row that each of the student's points reads
    target: T

    def to(self, device: torch.device) -> Seen[T]:
        """The same on a device."""
        return Seen(
            tuple(each.to(device) for each in self.cells),
            tuple(each.to(device) for each in self.values),
            None if self.rows is None else self.rows.to(device),
            None if self.point_row is None else self.point_row.to(device),
            self.target.to(device),
        )

    @property
    def bytes(self) -> int:
        """Memory that its features take."""
        return sum(each.nbytes for each in (*self.cells, *self.values, self.rows, self.point_row) if each is not None)


class BevHead(OnBackbone, Generic[T]):
    """A backbone, the trunk, and in subclasses what a task makes of its map.

    Args:
        student: the backbone.
        bev: the trunk's size.
        sweeps: S.
        frozen: the backbone learns nothing and stays in evaluation mode.
    """

    reads_points_of: int | None = None
    """Number of the sweep whose points the head reads; None for none."""

    def __init__(self, student: Student, bev: BevConfig, sweeps: int, *, frozen: bool) -> None:
        super().__init__(student, frozen=frozen)
        self.grid: BevGrid = bev.grid()
        channels = student.channels[-1]
        # Backbones differ in scale, random weights from trained ones most: what is compared is what features say. The
        # plain mean of statistics that stand still, for the reason that `segment.Segmenter` gives.
        self.norm = nn.BatchNorm1d(2 * channels, momentum=None if frozen else 0.1)
        self.history = BevHistory(channels, bev.channels, self.grid, frames=sweeps)
        wide = 2 * bev.channels
        self.down = nn.Conv2d(bev.channels, wide, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(
            *(_Block(wide, _DILATIONS[k % len(_DILATIONS)]) for k in range(bev.blocks)),
            nn.Conv2d(wide, bev.channels, 1),
        )
        self.fine = _Block(bev.channels, 1)

    def see(self, items: Sequence[Item[T]], device: torch.device) -> list[Seen[T]]:
        """Run the backbone on some items; without a gradient where it is frozen."""
        batch = PointBatch.cat([item.points for item in items]).to(device)
        with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
            level = self.student.encode(batch)[-1]
        feats = level.feats.float()
        # Where a row is: the mean of its points.
        count = torch.bincount(level.point_row, minlength=len(feats)).clamp(min=1)
        centre_m = batch.xyz_m.new_zeros((len(feats), 3)).index_add(0, level.point_row, batch.xyz_m) / count[:, None]
        seen, sweep = [], 0
        for item in items:
            cells, values, rows, point_row = [], [], None, None
            for k in range(item.points.batch_size):
                here = (level.item == sweep).nonzero()[:, 0]
                pose = item.t0_SE3_sweep[k].to(device)
                xyz_m = centre_m[here] @ pose[:3, :3].T + pose[:3, 3]
                cell, value = collapse_sweep(SweepFeatures(feats[here], xyz_m, torch.zeros_like(here)), self.grid)
                cells.append(cell)
                values.append(value)
                if k == self.reads_points_of:
                    rows = feats[here]
                    own = level.point_row[batch.batch_index == sweep]
                    place = torch.zeros(len(feats), dtype=torch.int64, device=device)
                    place[here] = torch.arange(len(here), device=device)
                    point_row = place[own]
                sweep += 1
            seen.append(Seen(tuple(cells), tuple(values), rows, point_row, item.target.to(device)))
        return seen

    def map(self, seen: Sequence[Seen[T]]) -> Tensor:
        """(B, D, H, W) the trunk's map of some items."""
        size = self.grid.cells**2
        joined = []
        for k in range(len(self.history.mix)):
            cells = torch.cat([each.cells[k] + item * size for item, each in enumerate(seen)])
            joined.append((cells, torch.cat([each.values[k] for each in seen])))
        normed = self._normed([values for _, values in joined])
        sweeps = [(cells, values) for (cells, _), values in zip(joined, normed, strict=True)]
        x = self.history.mixed(sweeps, len(seen))
        around = F.interpolate(self.coarse(self.down(x) + self.matched(sweeps, len(seen))), x.shape[2:])
        out: Tensor = self.fine(x + around)
        return out

    def matched(self, sweeps: Sequence[tuple[Tensor, Tensor]], items: int) -> Tensor | float:
        """(B, 2 D, H / 2, W / 2) what a task adds on cells of twice the size; nothing here.

        Args:
            sweeps: S x ((K,) cells, (K, 2 C + 1) values standardised).
            items: B.
        """
        return 0.0

    def _normed(self, values: list[Tensor]) -> list[Tensor]:
        """Means and maxima standardised over the sweeps together; the one that marks a cell is left."""
        both = torch.cat(values)
        if len(both) > 1 or not self.training:
            both = torch.cat((self.norm(both[:, :-1]), both[:, -1:]), dim=1)
        sizes = [len(each) for each in values]
        return list(both.split(sizes))  # type: ignore[no-untyped-call]

    def loss(self, seen: Sequence[Seen[T]]) -> Tensor:
        """() of some items."""
        raise NotImplementedError


class _Block(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))); starts as the identity."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        groups = _GROUPS if channels % _GROUPS == 0 else 1
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.inner = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation),
            nn.GroupNorm(groups, channels),
            nn.ReLU(),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) to the same."""
        out: Tensor = x + self.inner(x)
        return out
