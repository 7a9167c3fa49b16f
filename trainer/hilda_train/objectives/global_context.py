"""Global context: one vector for the whole scene, agreed on by the student and by all cameras together.

HilDA (arXiv 2606.20189):

    L_cls = || max_i H_CLS(f_i) - max_c CLS_c ||_2^2

with maxima per channel over all points i of the sample and over all cameras c. No projection is involved, so the
term does not feel calibration errors. The squared norm is reduced by the mean over channels (the sum is logged):
its weight then does not depend on the teacher's width.

Legend: N rows of student features, C student channels, S samples, V cameras, D teacher channels, P pairs.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hilda_schema.errors import UsageError
from hilda_train.objectives.heads import project_rows
from hilda_train.objectives.reductions import at_least_float32, mean_over_present, segment_max
from hilda_train.objectives.term import Term

Pooling = Literal["max", "attention", "per_view"]


def teacher_scene_token(global_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the cameras, per channel.

    Args:
        global_tokens: (S, V, D); a camera that is absent is NaN throughout, as the cache stores it. A NaN in the
            token of a camera that is there is damage, and comes out as NaN.

    Returns:
        (S, D) scene tokens, zero for a sample with no camera at all, and (S,) bool: has any camera.
    """
    tokens = at_least_float32(global_tokens)
    absent = tokens.isnan().all(dim=2)
    seen = ~absent.all(dim=1)
    pooled = tokens.masked_fill(absent[..., None], -torch.inf).amax(dim=1)
    return pooled.masked_fill(~seen[:, None], 0.0), seen


def global_context_loss(student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
    """() squared distance, mean over channels, then over the pairs of tokens that are present.

    Args:
        student: (S, D).
        teacher: (S, D).
        present: (S,) bool; rows that are not are left out of the mean, whatever they hold.
    """
    difference = (at_least_float32(student) - at_least_float32(teacher)).masked_fill(~present[:, None], 0.0)
    return mean_over_present(difference.square().mean(dim=1), present)


def attention_pool(projected: Tensor, score: Tensor, sample: Tensor, samples: int) -> Tensor:
    """(S, D) sum of the (N, D) rows of each sample, weighted by the softmax of their (N,) scores in that sample."""
    projected, score = at_least_float32(projected), at_least_float32(score)
    # The largest score is subtracted for range only; it cancels, so it needs no gradient.
    peak = segment_max(score.detach()[:, None], sample, samples)[:, 0]
    weight = (score - peak[sample]).exp()
    total = weight.new_zeros(samples).index_add(0, sample, weight)
    pooled = projected.new_zeros(samples, projected.shape[1]).index_add(0, sample, weight[:, None] * projected)
    return pooled / total.clamp(min=torch.finfo(total.dtype).tiny)[:, None]


class GlobalContext(nn.Module):
    """The head H_CLS and the way the student's rows become one token.

    Args:
        head: (M, C) -> (M, D).
        channels: C; only attention pooling needs it.
        pooling: "max" is the published choice. Ablations: "attention" (one learned score per row), "per_view"
            (each camera's own token against the maximum over the rows that this camera sees).

    Raises:
        UsageError: an unknown pooling.
    """

    def __init__(self, head: nn.Module, channels: int, pooling: Pooling = "max") -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise UsageError(f"pooling {pooling!r} is not known", f"use one of {', '.join(get_args(Pooling))}")
        self.head = head
        self.pooling = pooling
        self.score = nn.Linear(channels, 1) if pooling == "attention" else None

    def forward(self, features: Tensor, sample: Tensor, global_tokens: Tensor, rows: Tensor, camera: Tensor) -> Term:
        """Compare scene tokens.

        Args:
            features: (N, C) last student layer. Rows may be points or voxels: a maximum counts no duplicates
                (attention does, so there the two differ).
            sample: (N,) int64 in [0, S). Frames t-1 and t0 of a clip are two samples; their mean is taken.
            global_tokens: (S, V, D); NaN throughout for absent cameras.
            rows: (P,) int64, row of each point-camera pair; used by "per_view" alone.
            camera: (P,) int64, sample * V + camera; used by "per_view" alone.
        """
        samples, views, channels = global_tokens.shape
        if self.pooling == "per_view":
            global_tokens = global_tokens.reshape(samples * views, 1, channels)
            projected, group = project_rows(self.head, features, rows), camera
        else:
            projected, group = self.head(features), sample
        teacher, seen = teacher_scene_token(global_tokens)
        student = self._pool(features, at_least_float32(projected), group, len(teacher))
        filled = torch.zeros_like(seen).index_fill(0, group, True)
        loss = global_context_loss(student, teacher, seen & filled)
        logs = {"squared_norm": loss.detach() * channels, "tokens": (seen & filled).sum()}
        return Term(loss, logs)

    def _pool(self, features: Tensor, projected: Tensor, group: Tensor, groups: int) -> Tensor:
        if self.score is None:
            return segment_max(projected, group, groups)
        return attention_pool(projected, self.score(features)[:, 0], group, groups)
