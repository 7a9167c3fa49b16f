"""Point distillation: the student predicts, at every LiDAR point, the teacher's feature at the pixel it falls on.

HilDA (arXiv 2606.20189), multi-layer:

    L = 1/(V (K+1)) sum_{l=L-K..L} sum_{c=1..V} 1/|M_c| sum_{(i,j) in M_c} d(H_l(f_{i,l}), q_{j,l,c})

with d = 1 - cos, V cameras, M_c the point-pixel pairs of camera c and one head H_l for each of the K+1 layers.
ScaLR (arXiv 2310.17504) is one layer, a linear head, d = "norm" and one mean over all pairs: a single group.

Legend: N rows of student features, C student channels, P pairs, D teacher channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_schema.errors import UsageError
from hilda_train.objectives.heads import project_rows
from hilda_train.objectives.reductions import at_least_float32, mean_over_present, segment_mean
from hilda_train.objectives.term import Term

Distance = Literal["cosine", "centred_cosine", "norm", "l2", "kl"]

# A shorter vector than this counts as having no direction; torch's default would multiply its gradient by 1e8.
_SHORTEST = 1e-6


def pair_distance(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    """How far each prediction k is from its target q.

    cosine           1 - cos(k, q)                                     HilDA
    centred_cosine   1 - cos(k - mean(k), q - mean(q)), mean over channels    Concerto (arXiv 2510.23607)
    norm             || k/|k| - q/|q| ||_2                             ScaLR
    l2               mean over channels of (k - q)^2                   ablation; the published reduction is not stated
    kl               KL(softmax(q) || softmax(k)) over channels        ablation; the published form is not stated

    Args:
        student: (P, D).
        teacher: (P, D).
        distance: one of the above.

    Returns:
        (P,), at least float32.

    Raises:
        UsageError: an unknown distance.
    """
    k, q = at_least_float32(student), at_least_float32(teacher)
    if distance == "centred_cosine":
        k, q = k - k.mean(dim=1, keepdim=True), q - q.mean(dim=1, keepdim=True)
    if distance in {"cosine", "centred_cosine"}:
        return 1 - _cosine(k, q)
    if distance == "norm":
        difference = F.normalize(k, dim=1, eps=_SHORTEST) - F.normalize(q, dim=1, eps=_SHORTEST)
        return _length(difference)
    if distance == "l2":
        return (k - q).square().mean(dim=1)
    if distance == "kl":
        log_k, log_q = k.log_softmax(dim=1), q.log_softmax(dim=1)
        return (log_q.exp() * (log_q - log_k)).sum(dim=1)
    raise UsageError(f"distance {distance!r} is not known", f"use one of {', '.join(get_args(Distance))}")


def _length(rows: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return length


def _cosine(k: Tensor, q: Tensor) -> Tensor:
    """(P,) cosine of (P, D) rows: faster than torch's with its backward pass, and no matrix product to autocast."""
    return (k * q).sum(dim=1) / (_length(k).clamp(min=_SHORTEST) * _length(q).clamp(min=_SHORTEST))


def point_distillation_loss(
    student: Tensor, teacher: Tensor, camera: Tensor, cameras: int, distance: Distance = "cosine"
) -> tuple[Tensor, Tensor]:
    """One layer: mean over a camera's pairs, then over the cameras that have any.

    Args:
        student: (P, D) head outputs.
        teacher: (P, D).
        camera: (P,) int64 in [0, cameras), counting every camera of every sample on its own; all zero for one mean
            over all pairs.
        cameras: number of (sample, camera) groups; those without pairs do not count.
        distance: see `pair_distance`.

    Returns:
        () loss and () number of cameras that took part.
    """
    per_camera, count = segment_mean(pair_distance(student, teacher, distance), camera, cameras)
    return mean_over_present(per_camera, count > 0), (count > 0).sum()


class PointDistillation(nn.Module):
    """The heads, and the mean over layers.

    Args:
        heads: one per layer, (M, C_l) -> (M, D_l), in the order in which features are given.
        distance: see `pair_distance`.
    """

    def __init__(self, heads: Sequence[nn.Module], distance: Distance = "cosine") -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.distance: Distance = distance

    def project(self, features: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        """Predictions at the pairs, layer by layer.

        Args:
            features: per layer (N_l, C_l), a row for each point or for each voxel.
            rows: per layer (P,) int64, the pair's row. Voxel rows are exact and cheaper: points of one voxel have
                one feature, and the head runs once for each row in use.

        Returns:
            per layer (P, D_l); other objectives may share them (`relational`).
        """
        return [project_rows(head, layer, row) for head, layer, row in zip(self.heads, features, rows, strict=True)]

    def compare(self, projected: Sequence[Tensor], teacher: Sequence[Tensor], camera: Tensor, cameras: int) -> Term:
        """The loss of predictions made by `project`; teacher per layer (P, D_l), the rest as in the loss above."""
        losses = []
        for k, q in zip(projected, teacher, strict=True):
            loss, present = point_distillation_loss(k, q, camera, cameras, self.distance)
            losses.append(loss)
        logs = {f"layer_{index}": loss.detach() for index, loss in enumerate(losses)}
        return Term(torch.stack(losses).mean(), logs | {"cameras": present})

    def forward(
        self,
        features: Sequence[Tensor],
        rows: Sequence[Tensor],
        teacher: Sequence[Tensor],
        camera: Tensor,
        cameras: int,
    ) -> Term:
        """`compare` of `project`."""
        return self.compare(self.project(features, rows), teacher, camera, cameras)
