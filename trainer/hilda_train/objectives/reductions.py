"""Means and maxima over ragged groups: the pairs of a camera, the points of a sample or of a BEV cell.

Legend: P rows, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hilda_train.distributed import mean_over_ranks, world_size


def at_least_float32(values: Tensor) -> Tensor:
    """Widen half precision to float32, leave float32 and float64 as they are; any shape.

    Losses are computed so under autocast too: bfloat16 holds 1 - cos to two digits near the end of training.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def segment_mean(values: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean of the rows of each group.

    Args:
        values: (P, ...) floating point.
        group: (P,) int64 in [0, groups).
        groups: G.

    Returns:
        (G, ...) means, zero for an empty group, and (G,) row counts in the dtype of the values.
    """
    values = at_least_float32(values)
    count = values.new_zeros(groups).index_add(0, group, values.new_ones(len(values)))
    total = values.new_zeros(groups, *values.shape[1:]).index_add(0, group, values)
    return total / count.clamp(min=1).view(groups, *[1] * (values.dim() - 1)), count


def segment_max(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Maximum of the rows of each group, per channel; NaN wins, ties share the gradient evenly.

    Args:
        values: (P, C) floating point.
        group: (P,) int64 in [0, groups).
        groups: G.

    Returns:
        (G, C), zero for an empty group.
    """
    peak: Tensor = _SegmentMax.apply(values, group, groups)  # type: ignore[no-untyped-call]
    return peak


class _SegmentMax(torch.autograd.Function):
    """`scatter_reduce("amax")` with a backward pass that moves whole rows: two to three times faster on a CPU."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Tensor, groups: int) -> Tensor:
        start = values.new_zeros(groups, values.shape[1])
        peak = start.scatter_reduce(0, group[:, None].expand_as(values), values, "amax", include_self=False)
        ctx.save_for_backward(values, group, peak)
        return peak

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, group, peak = ctx.saved_tensors
        hit = values == peak.index_select(0, group)
        ties = torch.zeros_like(peak).index_add(0, group, hit.to(peak.dtype)).clamp(min=1)
        return (gradient / ties).index_select(0, group) * hit, None, None


def shared_count(count: Tensor) -> Tensor:
    """() what a sum is divided by so that the mean of all ranks' quotients is the mean over all ranks' rows.

    With one process: the count itself, at least 1.
    """
    return mean_over_ranks(count.float()).clamp(min=1 / world_size())


def mean_over_present(values: Tensor, present: Tensor) -> Tensor:
    """() mean of those (G,) values whose flag is set; zero, with zero gradient, where none is."""
    return (values * present).sum() / shared_count(present.sum())
