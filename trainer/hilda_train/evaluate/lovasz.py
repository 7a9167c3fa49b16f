"""The Lovász-softmax loss: a convex surrogate of the Jaccard loss (Berman, Rannen Triki and Blaschko, CVPR 2018).

For a class c let m_i be how wrong point i is about it: 1 - p_i(c) where c is its class, p_i(c) elsewhere. A set M of
mispredicted points costs the Jaccard loss Delta(M) = |M| / |F union M|, F being the class's points. The loss is the
Lovász extension of that set function at m: with the errors in descending order,

    loss_c = sum_i m_(i) (Delta({(1) .. (i)}) - Delta({(1) .. (i - 1)})).

The increments have a closed form, 1 / U_i for a point of the class and I_i / (U_i - 1) U_i for another one, where
I = |F minus M| and U = |F union M|. It is used here: the published code subtracts neighbouring values of Delta, which
in float32 leaves little of an increment among a million points.

Legend: N points, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_softmax(probabilities: Tensor, target: Tensor) -> Tensor:
    """Mean of the loss over the classes that occur.

    Args:
        probabilities: (N, K), rows sum to one.
        target: (N,) int64 classes of all points; none is left out here.

    Returns:
        () loss; zero without points.
    """
    if not len(target):
        return probabilities.sum()
    own = torch.zeros_like(probabilities).scatter_(1, target[:, None], 1.0)
    errors = (own - probabilities).abs()
    ordered, order = errors.sort(dim=0, descending=True, stable=True)
    losses = (ordered * _increments(own.gather(0, order))).sum(dim=0)
    return losses[own.any(dim=0)].mean()


def _increments(own: Tensor) -> Tensor:
    """(N, K) what each point adds to Delta.

    Args:
        own: (N, K), 1 where a point is of the class, 0 elsewhere; in descending order of the errors.
    """
    found = own.long().cumsum(dim=0)  # whole numbers: exact, and the same on a GPU each time
    size, place = found[-1], torch.arange(1, len(own) + 1, device=own.device)[:, None]
    intersection = (size - found).to(own)
    union = (size + place - found).to(own)
    # An absent class has no point of its own and a union of nothing before its first; its column is not used.
    other = intersection / ((union - 1).clamp(min=1) * union)
    return torch.where(own.bool(), 1 / union, other)
