"""From points to voxels: which grid cell each point lies in, and one feature per occupied cell.

Two grids are in use. Cartesian cells are cubes of 0.1 m (ALSO, BEVContrast, ScaLR). Cylindrical cells follow the
sensor's own sampling: distance from the vertical axis, azimuth and height, 0.1 m x 1 degree x 0.1 m (SLidR, Seal,
SuperFlow). A cylindrical grid does not join at +-180 degrees: voxels on both sides of that seam are no neighbours,
in the published networks as here.

Legend: N points given, P points inside the range, M voxels, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hilda_schema.errors import TrainError, UsageError
from hilda_train.students.points import Voxels
from hilda_train.students.sparse.coordinates import COORDINATE_MAX, COORDINATE_MIN, pack, unpack

Box = tuple[tuple[float, float, float], tuple[float, float, float]]
Reduction = Literal["mean", "first", "random"]
AXIS_NAMES = {"cartesian": ("x", "y", "z"), "cylindrical": ("distance", "azimuth", "z")}


@dataclass(frozen=True, slots=True)
class VoxelGrid:
    """A grid over the LiDAR frame, with a cell corner at its origin.

    Raises:
        UsageError: an unknown shape, or a size that is not positive.
    """

    shape: Literal["cartesian", "cylindrical"] = "cartesian"
    size: tuple[float, float, float] = (0.1, 0.1, 0.1)
    """Cell edges: x, y, z in metres; or distance in metres, azimuth in degrees, z in metres."""
    range_m: Box | None = None
    """Lowest (included) and highest (excluded) x, y and z in metres; points outside are left out. None: keep all."""

    def __post_init__(self) -> None:
        if self.shape not in AXIS_NAMES:
            raise UsageError(f"voxel grid {self.shape!r} is not known", f"use {' or '.join(AXIS_NAMES)}")
        if not all(size > 0 for size in self.size):
            raise UsageError(f"voxel sizes must be positive, not {self.size}")

    def position(self, xyz_m: Tensor) -> Tensor:
        """Where points lie in the grid, in cells.

        Args:
            xyz_m: (N, 3) float32, LiDAR frame.

        Returns:
            (N, 3) float32; the cell of a point is the floor of it.
        """
        x, y, z = xyz_m.unbind(1)
        if self.shape == "cylindrical":
            axes = torch.stack([torch.sqrt(x.square() + y.square()), torch.rad2deg(torch.atan2(y, x)), z], dim=1)
        else:
            axes = xyz_m
        return axes / axes.new_tensor(self.size)

    def inside(self, xyz_m: Tensor) -> Tensor:
        """(N,) bool: which points lie in `range_m`."""
        if self.range_m is None:
            return torch.ones(len(xyz_m), dtype=torch.bool)
        low, high = (xyz_m.new_tensor(corner) for corner in self.range_m)
        return ((xyz_m >= low) & (xyz_m < high)).all(1)


@dataclass(frozen=True, slots=True, eq=False)
class Voxelisation:
    """A sweep put on a grid."""

    voxels: Voxels  # of the P points kept; all of batch item 0
    kept: Tensor  # (P,) int64, ascending: rows of the points given that lie inside the range
    n_outside: int  # N - P: points left out
    representative: Tensor  # (M,) int64 row among the P kept points: the one that stands for the voxel


def voxelise(
    xyz_m: Tensor,
    feats: Tensor,
    grid: VoxelGrid,
    reduction: Reduction = "mean",
    generator: torch.Generator | None = None,
) -> Voxelisation:
    """Put a sweep on a grid.

    Args:
        xyz_m: (N, 3) float32, LiDAR frame, finite.
        feats: (N, C) float32.
        grid: cells and range.
        reduction: a voxel's feature is the "mean" of its points', or that of one point: the "first" in the sweep's
            order (SLidR) or a "random" one (ScaLR). The representative is the random or the first point.
        generator: draws the random points; the same state gives the same voxels.

    Returns:
        Voxels in ascending order of their coordinates.

    Raises:
        TrainError: a point is not finite, or so far out that no voxel coordinate can hold it.
        UsageError: "random" without a generator.
    """
    inside = grid.inside(xyz_m)
    kept = inside.nonzero()[:, 0]
    position = grid.position(xyz_m[kept])
    _check(position, grid)
    cell = position.floor().int()
    coords = torch.cat([cell.new_zeros((len(cell), 1)), cell], dim=1)
    keys, point_to_voxel = torch.unique(pack(coords), return_inverse=True)
    representative = _representatives(point_to_voxel, len(keys), reduction, generator)
    kept_feats = feats[kept]
    voxel_feats = _mean(kept_feats, point_to_voxel, len(keys)) if reduction == "mean" else kept_feats[representative]
    voxels = Voxels(unpack(keys), voxel_feats, point_to_voxel, position)
    return Voxelisation(voxels, kept, len(xyz_m) - len(kept), representative)


def _check(position: Tensor, grid: VoxelGrid) -> None:
    """Refuse what an integer conversion would turn into an arbitrary voxel."""
    fits = (position >= COORDINATE_MIN) & (position < COORDINATE_MAX + 1)  # False for NaN
    if bool(fits.all()):
        return
    row, axis = (~fits).nonzero()[0].tolist()
    unit = "degrees" if (grid.shape, axis) == ("cylindrical", 1) else "m"
    value = float(position[row, axis]) * grid.size[axis]
    low, high = COORDINATE_MIN * grid.size[axis], (COORDINATE_MAX + 1) * grid.size[axis]
    raise TrainError(
        f"a point has {AXIS_NAMES[grid.shape][axis]} = {value:g} {unit}, outside {low:g}..{high:g} {unit}, "
        f"the reach of {grid.size[axis]:g} {unit} voxels",
        "drop points that are not finite, and crop to a range in metres",
    )


def _representatives(
    point_to_voxel: Tensor, n_voxels: int, reduction: Reduction, generator: torch.Generator | None
) -> Tensor:
    """One point of each voxel: the first in the sweep's order, or in a random one."""
    n = len(point_to_voxel)
    if reduction == "random":
        if generator is None:
            raise UsageError("random voxel representatives need a generator", "pass torch.Generator().manual_seed(...)")
        order = torch.randperm(n, generator=generator)
    else:
        order = torch.arange(n)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n)
    first = torch.full((n_voxels,), n).scatter_reduce_(0, point_to_voxel, rank, "amin")
    return order[first]


def _mean(feats: Tensor, point_to_voxel: Tensor, n_voxels: int) -> Tensor:
    count = torch.bincount(point_to_voxel, minlength=n_voxels)
    total = feats.new_zeros((n_voxels, feats.shape[1]), dtype=torch.float64)
    total.index_add_(0, point_to_voxel, feats.double())
    return (total / count[:, None]).to(feats.dtype)
