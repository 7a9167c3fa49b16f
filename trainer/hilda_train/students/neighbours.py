"""Exact nearest neighbours of points, without a compiled tree.

Comparing all points with all costs N^2. Splitting the cloud at medians, along the longest side, until few points
are left gives compact leaves (a k-d tree's). A leaf's own points bound how far its neighbours can be, and only
leaves whose boxes come that near are compared: on a sweep, about one pair in thirty.

Legend: N points, K neighbours, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAF_POINTS = 64
REACH_SLACK = 1e-5  # relative; more than the rounding of a squared distance


def nearest_neighbours(xyz_m: Tensor, batch_index: Tensor, k: int) -> Tensor:
    """The k nearest other points of the same batch item.

    Args:
        xyz_m: (N, 3) floating, finite.
        batch_index: (N,) int64, ascending.
        k: K, at least 1.

    Returns:
        (N, K) int64 rows, nearest first. Where an item has fewer than K + 1 points, the point itself stands in for
        each neighbour that is missing.
    """
    sizes = torch.bincount(batch_index).tolist()
    clouds = torch.split(torch.arange(len(xyz_m), device=xyz_m.device), sizes)
    found = [rows[_of_one_cloud(xyz_m[rows], k)] for rows in clouds if len(rows)]
    return torch.cat(found) if found else batch_index.new_zeros((0, k))


def nearest_rows(query_m: Tensor, cloud_m: Tensor) -> Tensor:
    """For each query the nearest point of a cloud.

    Args:
        query_m: (Q, 3) floating, finite.
        cloud_m: (N, 3), at least one.

    Returns:
        (Q,) int64 rows of the cloud.
    """
    found = torch.empty(len(query_m), dtype=torch.int64, device=query_m.device)
    if not len(query_m):
        return found
    leaves = _split(cloud_m, torch.arange(len(cloud_m), device=cloud_m.device), LEAF_POINTS)
    low = torch.stack([cloud_m[rows].amin(0) for rows in leaves])
    high = torch.stack([cloud_m[rows].amax(0) for rows in leaves])
    for asked in _split(query_m, torch.arange(len(query_m), device=query_m.device), LEAF_POINTS):
        points = query_m[asked]
        gap = torch.maximum(low - points.amax(0), points.amin(0) - high).clamp_(min=0).square().sum(1)
        nobody = asked.new_full((len(asked),), -1)
        first = leaves[int(gap.argmin())]
        squared_reach = _nearest_among(points, nobody, cloud_m[first], first, 1)[0].amax() * (1 + REACH_SLACK)
        near = (gap <= squared_reach).nonzero()[:, 0].tolist()
        candidates = torch.cat([leaves[leaf] for leaf in near])
        found[asked] = _nearest_among(points, nobody, cloud_m[candidates], candidates, 1)[1][:, 0]
    return found


def _of_one_cloud(xyz_m: Tensor, k: int) -> Tensor:
    n = len(xyz_m)
    everyone = torch.arange(n, device=xyz_m.device)
    if n <= k:
        others = _nearest_among(xyz_m, everyone, xyz_m, everyone, n - 1)[1]
        return torch.cat([others, everyone[:, None].expand(n, k - (n - 1))], dim=1)
    found = torch.empty((n, k), dtype=torch.int64, device=xyz_m.device)
    # A leaf holds at least half of the limit: the k + 1 points that its bound needs.
    leaves = _split(xyz_m, everyone, limit=max(LEAF_POINTS, 2 * (k + 1)))
    low = torch.stack([xyz_m[rows].amin(0) for rows in leaves])
    high = torch.stack([xyz_m[rows].amax(0) for rows in leaves])
    for leaf, rows in enumerate(leaves):
        points = xyz_m[rows]
        squared_reach = _nearest_among(points, rows, points, rows, k)[0].amax() * (1 + REACH_SLACK)
        gap = torch.maximum(low - high[leaf], low[leaf] - high).clamp_(min=0)
        near = (gap.square().sum(1) <= squared_reach).nonzero()[:, 0].tolist()
        candidates = torch.cat([leaves[other] for other in near])
        found[rows] = _nearest_among(points, rows, xyz_m[candidates], candidates, k)[1]
    return found


def _split(xyz_m: Tensor, rows: Tensor, limit: int) -> list[Tensor]:
    """Halve a cloud at the median of its longest side until no part has more than `limit` points."""
    if len(rows) <= limit:
        return [rows]
    points = xyz_m[rows]
    axis = int((points.amax(0) - points.amin(0)).argmax())
    ordered = rows[points[:, axis].argsort(stable=True)]
    half = len(rows) // 2
    return _split(xyz_m, ordered[:half], limit) + _split(xyz_m, ordered[half:], limit)


def _nearest_among(
    points: Tensor, rows: Tensor, candidates: Tensor, candidate_rows: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Squared distances (m^2) and rows, both (n, k), of the k candidates nearest to each point but itself."""
    # One axis at a time: no (n, candidates, 3) array, and sums of squares that lose nothing to cancellation.
    squared = torch.zeros((len(points), len(candidates)), dtype=points.dtype, device=points.device)
    for a, b in zip(points.T, candidates.T, strict=True):
        difference = a[:, None] - b
        squared.addcmul_(difference, difference)
    squared[rows[:, None] == candidate_rows] = torch.inf
    nearest, position = squared.topk(k, dim=1, largest=False)
    return nearest, candidate_rows[position]
