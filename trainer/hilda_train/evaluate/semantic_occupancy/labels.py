"""Semantic occupancy of one labelled sweep: the class of most of a cell's returns, free where rays passed.

Unlike `data.occupancy`, which asks for a column, this looks at each ray in three dimensions: a cell is free where some
ray went through it on its way to a return and nothing returned from it.

Legend: N returns, Z layers, H = W grid cells, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hilda_train.evaluate.classes import IGNORED
from hilda_train.objectives.bev import BevGrid

UNKNOWN = -1
"""Cell that no ray reached, or whose class counts nowhere."""


def semantic_occupancy(
    xyz_m: Tensor,
    label: Tensor,
    origin_m: Tensor,
    grid: BevGrid,
    layers: int,
    classes: int,
    *,
    min_range_m: float = 0.0,
) -> Tensor:
    """What one sweep says of the cells.

    Args:
        xyz_m: (N, 3) finite returns in the LiDAR frame of t0.
        label: (N,) int64 classes, `IGNORED` for none.
        origin_m: (3,) the sensor, same frame.
        grid: cells; its height band is cut in layers.
        layers: Z.
        classes: K.
        min_range_m: returns nearer to the sensor than this, horizontally, are the vehicle's own body; their rays say
            nothing.

    Returns:
        (Z, H, W) int8: a class, K for free, `UNKNOWN`.
    """
    ray = xyz_m - origin_m
    own = ray[:, :2].norm(dim=1) < min_range_m
    xyz_m, label, ray = xyz_m[~own], label[~own], ray[~own]
    size = layers * grid.cells**2
    occupied = torch.full((size,), UNKNOWN, dtype=torch.int8)
    cell, inside = cell_of(_passed(ray, origin_m, grid, layers), grid, layers)
    occupied[cell[inside]] = classes
    cell, inside = cell_of(xyz_m, grid, layers)
    cell, label = cell[inside], label[inside]
    occupied[cell] = UNKNOWN  # a return fills its cell, whatever its class
    counting = label != IGNORED
    votes = torch.bincount(cell[counting] * classes + label[counting], minlength=size * classes).view(size, classes)
    most, winner = votes.max(dim=1)
    occupied = torch.where(most > 0, winner.to(torch.int8), occupied)
    return occupied.view(layers, grid.cells, grid.cells)


def cell_of(xyz_m: Tensor, grid: BevGrid, layers: int) -> tuple[Tensor, Tensor]:
    """(N,) int64 flat cell, (layer * H + row) * W + column, meaningless outside; and (N,) bool: inside."""
    flat, inside = grid.cell_of(xyz_m)
    height_m = (grid.z_max_m - grid.z_min_m) / layers
    layer = ((xyz_m[:, 2] - grid.z_min_m) / height_m).floor().long()
    inside = inside & (layer >= 0) & (layer < layers)
    return torch.where(inside, layer * grid.cells**2 + flat, 0), inside


def _passed(ray: Tensor, origin_m: Tensor, grid: BevGrid, layers: int) -> Tensor:
    """Points along the rays, a step apart that is half the least side of a cell, short of the returns by one cell."""
    step_m = min(grid.cell_m, (grid.z_max_m - grid.z_min_m) / layers) / 2
    length = ray.norm(dim=1)
    reach = (length - grid.cell_m).clamp(min=0, max=2 * grid.range_m)
    count = (reach / step_m).long()
    which = torch.repeat_interleave(torch.arange(len(ray)), count)
    first = torch.cumsum(count, 0) - count
    along = (torch.arange(len(which)) - first[which] + 0.5) * step_m
    points: Tensor = origin_m + ray[which] * (along / length[which])[:, None]
    return points
