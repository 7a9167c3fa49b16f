"""Control arm for the diffusion: the same history map and network, asked for the occupancy at once.

    L = mean over observed cells of BCE(sigma(g(C_history)), x_occ)

with g the same UNet as the denoiser, its step held at 0, so that the two arms differ in the objective alone. HilDA
(arXiv 2606.20189) reports this "plain occupancy decoder" far below the diffusion.

Legend: S samples, H x W grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_train.objectives.bev import OCCUPIED, UNOBSERVED, BevHistory, SweepFeatures, occupancy_scores
from hilda_train.objectives.reductions import at_least_float32, shared_count
from hilda_train.objectives.term import Term


def occupancy_bce_loss(logits: Tensor, target: Tensor, occupied_weight: float) -> Tensor:
    """() weighted mean of the cross-entropy over observed cells.

    Args:
        logits: (S, H, W).
        target: (S, H, W) uint8 of FREE, OCCUPIED, UNOBSERVED.
        occupied_weight: weight of an occupied cell.
    """
    logits = at_least_float32(logits)
    occupied = target == OCCUPIED
    weight = torch.where(occupied, occupied_weight, 1.0).to(logits.dtype) * (target != UNOBSERVED)
    loss = F.binary_cross_entropy_with_logits(logits, occupied.to(logits.dtype), reduction="none")
    return (loss * weight).sum() / shared_count(weight.sum())


class OccupancyBce(nn.Module):
    """History map and decoder.

    Args:
        history: collapses the sweeps to (S, D, H, W).
        decoder: (S, D, H, W), (S,) -> (S, 1, H, W), e.g. `UNet2d(D)`.
        occupied_weight: see `occupancy_bce_loss`.
    """

    def __init__(self, history: BevHistory, decoder: nn.Module, occupied_weight: float = 5.0) -> None:
        super().__init__()
        self.history = history
        self.decoder = decoder
        self.occupied_weight = occupied_weight

    def forward(self, sweeps: Sequence[SweepFeatures], target: Tensor) -> Term:
        """The loss of t-1 and t0 against (S, H, W) uint8 occupancy of t1; logs IoU and recall of the occupied class."""
        logits = self.predict(sweeps, len(target))
        loss = occupancy_bce_loss(logits, target, self.occupied_weight)
        return Term(loss, occupancy_scores(logits.detach() > 0, target))

    def predict(self, sweeps: Sequence[SweepFeatures], samples: int) -> Tensor:
        """(S, H, W) logits; above 0 is occupied."""
        history = self.history(sweeps, samples)
        step = torch.zeros(samples, dtype=torch.long, device=history.device)
        logits: Tensor = self.decoder(history, step)
        return logits[:, 0]
