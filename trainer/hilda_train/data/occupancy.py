"""The occupancy target: where the sweep of t1 found something, what it saw to be free, and what it could not see.

HilDA (arXiv 2606.20189): the sweep of t1 in the frame of t0, ground removed, as a binary map. Ours keeps apart cells
that no ray reached, so that they need not count as free.

Visibility is decided in polar form. Each ray reaches as far as its return, or to where it leaves the grid's height
band. In each sector of azimuth the longest reach bounds what was seen: a cell whose centre lies within it is free
unless it holds a return. Seen thus means "some ray of the sector went through this column within the height band"; a
low object hidden behind another low one, over which higher rays pass, counts as free.

Legend: N points, H = W grid cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hilda_train.objectives.bev import FREE, OCCUPIED, UNOBSERVED, BevGrid

__all__ = ["BevGrid", "occupancy_target"]


def occupancy_target(
    xyz_m: Tensor,
    solid: Tensor,
    origin_m: Tensor,
    grid: BevGrid,
    *,
    min_range_m: float = 2.5,
    sectors: int = 720,
    unseen_is_free: bool = False,
) -> Tensor:
    """Target of one sweep.

    Args:
        xyz_m: (N, 3) finite floating-point returns of t1 in the LiDAR frame of t0.
        solid: (N,) bool; False for ground, which occupies nothing, though its rays bear witness to free space.
        origin_m: (3,) the sensor at t1, same frame.
        grid: cells and height band.
        min_range_m: returns nearer to the sensor than this, horizontally, are the vehicle's own body and left out; the
            cells there stay unobserved.
        sectors: number of azimuth sectors; each should hold a ray. 720 is 0.5 degrees, about a cell at 50 m.
        unseen_is_free: the published, binary target: every cell without a return is free.

    Returns:
        (H, W) uint8 of FREE, OCCUPIED, UNOBSERVED.
    """
    ray = xyz_m - origin_m
    horizontal = ray[:, :2].norm(dim=1)
    target = torch.full((grid.cells**2,), UNOBSERVED, dtype=torch.uint8, device=xyz_m.device)

    reach = horizontal * _share_within_band(ray[:, 2], origin_m[2], grid)
    longest = reach.new_zeros(sectors).scatter_reduce(0, _sector(ray, sectors), reach, "amax")
    cells = (grid.centres_m(xyz_m.device).to(xyz_m.dtype) - origin_m[:2]).reshape(-1, 2)
    distance = cells.norm(dim=1)
    target[(distance >= min_range_m) & (distance <= longest[_sector(cells, sectors)])] = FREE

    within = (xyz_m[:, 2] >= grid.z_min_m) & (xyz_m[:, 2] <= grid.z_max_m)
    cell, inside = grid.cell_of(xyz_m)
    target[cell[within & inside & solid & (horizontal >= min_range_m)]] = OCCUPIED
    if unseen_is_free:
        target[target == UNOBSERVED] = FREE
    return target.view(grid.cells, grid.cells)


def _share_within_band(rise_m: Tensor, origin_z_m: Tensor, grid: BevGrid) -> Tensor:
    """(N,) fraction of each ray, from the sensor on, that stays within the height band; in [0, 1]."""
    limit = torch.where(rise_m > 0, grid.z_max_m - origin_z_m, grid.z_min_m - origin_z_m)
    share = torch.where(rise_m == 0, torch.ones_like(rise_m), limit / rise_m)
    starts_inside = (origin_z_m >= grid.z_min_m) & (origin_z_m <= grid.z_max_m)
    return share.clamp(0, 1) * starts_inside


def _sector(offset_m: Tensor, sectors: int) -> Tensor:
    """(N,) int64 azimuth sector of horizontal offsets from the sensor."""
    turn = torch.atan2(offset_m[:, 1], offset_m[:, 0]) / (2 * math.pi) + 0.5
    return (turn * sectors).long().clamp(0, sectors - 1)
