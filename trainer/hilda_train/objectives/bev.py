"""Bird's-eye view: the grid, the collapse of student features into the history map, and how a map is scored.

Legend: M rows of student features, C student channels, S samples, F frames, K occupied cells, H = W grid cells,
        D history channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hilda_schema.errors import UsageError
from hilda_train.objectives.reductions import at_least_float32, segment_max, segment_mean

# Values of an occupancy target. Unobserved cells are left out of every loss: no evidence is not "free".
FREE, OCCUPIED, UNOBSERVED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class BevGrid:
    """A square of cells around the LiDAR at t0; row H follows x (forward), column W follows y (left).

    Cell (0, 0) begins at (-range_m, -range_m). The height band says which returns and rays count for occupancy.

    Raises:
        UsageError: the range is not a whole number of cells, or the height band is empty.
    """

    range_m: float = 51.2
    cell_m: float = 0.4
    z_min_m: float = -2.0
    z_max_m: float = 3.0

    def __post_init__(self) -> None:
        if self.cell_m <= 0 or self.range_m <= 0 or abs(2 * self.range_m / self.cell_m - self.cells) > 1e-6:
            raise UsageError(
                f"a range of {self.range_m} m to each side is not a whole number of {self.cell_m} m cells",
                "choose range_m and cell_m so that 2 * range_m / cell_m is whole",
            )
        if self.z_min_m >= self.z_max_m:
            raise UsageError(f"the height band {self.z_min_m} to {self.z_max_m} m is empty", "give z_min_m < z_max_m")

    @property
    def cells(self) -> int:
        """Cells along one side, H = W."""
        return round(2 * self.range_m / self.cell_m)

    def cell_of(self, xyz_m: Tensor) -> tuple[Tensor, Tensor]:
        """Cell of each point, whatever its height.

        Args:
            xyz_m: (N, 3) finite, LiDAR frame of t0.

        Returns:
            (N,) int64 flat cell, row * W + column, meaningless outside; and (N,) bool: inside the square.
        """
        index = ((xyz_m[:, :2] + self.range_m) / self.cell_m).floor().long()
        inside = ((index >= 0) & (index < self.cells)).all(dim=1)
        return index[:, 0] * self.cells + index[:, 1], inside

    def centres_m(self, device: torch.device | None = None) -> Tensor:
        """(H, W, 2) float32 x and y of every cell's centre."""
        along = (torch.arange(self.cells, device=device) + 0.5) * self.cell_m - self.range_m
        return torch.stack(torch.meshgrid(along, along, indexing="ij"), dim=-1)


class SweepFeatures(NamedTuple):
    """What the student made of one sweep of every sample; a row is a point or a voxel."""

    features: Tensor  # (M, C)
    xyz_m: Tensor  # (M, 3) in the LiDAR frame of t0, whichever sweep the row belongs to
    sample: Tensor  # (M,) int64 in [0, S)


def collapse_cells(features: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum of the rows in each occupied cell, and a one that says it is occupied.

    Args:
        features: (M, C).
        cell: (M,) int64.

    Returns:
        (K,) sorted distinct cells, and (K, 2 C + 1) at least float32.
    """
    cells, position = torch.unique(cell, return_inverse=True)
    mean, count = segment_mean(features, position, len(cells))
    largest = segment_max(at_least_float32(features), position, len(cells))
    return cells, torch.cat((mean, largest, torch.ones_like(count)[:, None]), dim=1)


def collapse_sweep(sweep: SweepFeatures, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """`collapse_cells` of a sweep's rows inside the grid's square: (K,) sample * H * W + cell, and (K, 2 C + 1)."""
    cell, inside = grid.cell_of(sweep.xyz_m)
    return collapse_cells(sweep.features[inside], (sweep.sample * grid.cells**2 + cell)[inside])


class BevHistory(nn.Module):
    """Sweeps t-1 and t0, collapsed and mixed into one dense map C_history.

    Equal to scattering mean, maximum and an occupied mask of each frame into dense maps, stacking them along the
    channels and applying a 1x1 convolution. The convolution is applied to occupied cells only (a few per cent of
    the map; elsewhere it would multiply zeros), as one linear map for each frame.

    Args:
        channels: C of every frame.
        history_channels: D.
        grid: where rows fall.
        frames: F, the number of sweeps that `forward` takes.
    """

    def __init__(self, channels: int, history_channels: int, grid: BevGrid, frames: int = 2) -> None:
        super().__init__()
        self.grid = grid
        self.mix = nn.ModuleList(nn.Linear(2 * channels + 1, history_channels, bias=False) for _ in range(frames))
        self.bias = nn.Parameter(torch.zeros(history_channels))

    def forward(self, sweeps: Sequence[SweepFeatures], samples: int) -> Tensor:
        """Collapse sweeps.

        Args:
            sweeps: F of them, oldest first; rows outside the grid's square are left out.
            samples: S.

        Returns:
            (S, D, H, W), at least float32.
        """
        return self.mixed((collapse_sweep(sweep, self.grid) for sweep in sweeps), samples)

    def mixed(self, collapsed: Iterable[tuple[Tensor, Tensor]], samples: int) -> Tensor:
        """The map of sweeps that are collapsed already, see `collapse_sweep`; (S, D, H, W)."""
        side = self.grid.cells
        history = at_least_float32(self.bias).expand(samples * side**2, -1)
        for mix, (cells, values) in zip(self.mix, collapsed, strict=True):
            history = history.index_add(0, cells, mix(values).to(history.dtype))
        return history.view(samples, side, side, len(self.bias)).permute(0, 3, 1, 2)


def occupancy_scores(occupied: Tensor, target: Tensor) -> dict[str, Tensor]:
    """How well a map agrees with the target, over observed cells; health numbers, not losses.

    Args:
        occupied: (S, H, W) bool prediction.
        target: (S, H, W) uint8 of FREE, OCCUPIED, UNOBSERVED.

    Returns:
        () "iou" and "recall" of the occupied class; 1 where there was nothing to find and nothing was found.
    """
    truth = target == OCCUPIED
    predicted = occupied & (target != UNOBSERVED)
    hit, union, total = (predicted & truth).sum(), (predicted | truth).sum(), truth.sum()
    return {
        "iou": (hit + (union == 0)) / union.clamp(min=1),
        "recall": (hit + (total == 0)) / total.clamp(min=1),
    }
