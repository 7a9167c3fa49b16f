"""PPKT: contrast each point with the pixels of the other pairs.

PPKT (arXiv 2104.04687), in the form in which SLidR (arXiv 2203.16258) re-implements it as its baseline: m pairs drawn
at random from the batch, both sides projected by a trained linear head and normalised,

    L = -1/m sum_i log( exp(k_i . q_i / T) / sum_j exp(k_i . q_j / T) )

one direction only, from points to pixels; m = 4096, T = 0.07.

Legend: N rows of student features, P pairs, m drawn pairs, D common channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_train.objectives.heads import project_rows
from hilda_train.objectives.reductions import at_least_float32
from hilda_train.objectives.term import Term


def info_nce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """() InfoNCE of (m, D) rows with (m, D) rows, row i belonging to row i; zero for no rows."""
    k = F.normalize(at_least_float32(student), dim=1)
    q = F.normalize(at_least_float32(teacher), dim=1)
    with torch.autocast(k.device.type, enabled=False):
        logits = k @ q.T / temperature
    return F.cross_entropy(logits, torch.arange(len(k), device=k.device), reduction="sum") / max(len(k), 1)


class PointContrast(nn.Module):
    """Both heads, and the draw of pairs.

    Args:
        student_head: (M, C) -> (M, D); PPKT's is linear to 64 channels.
        teacher_head: (m, D_teacher) -> (m, D), trained too: the frozen features are of another width.
        pairs: m.
        temperature: T.
    """

    def __init__(
        self,
        student_head: nn.Module,
        teacher_head: nn.Module,
        *,
        pairs: int = 4096,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.student_head = student_head
        self.teacher_head = teacher_head
        self.pairs = pairs
        self.temperature = temperature

    def forward(
        self, features: Tensor, rows: Tensor, teacher: Tensor, generator: torch.Generator | None = None
    ) -> Term:
        """Contrast a random draw of the batch's pairs.

        Args:
            features: (N, C).
            rows: (P,) int64, the pair's row of the features.
            teacher: (P, D_teacher).
            generator: source of the draw, on the pairs' device; None: torch's own.
        """
        drawn = torch.randperm(len(rows), generator=generator, device=rows.device)[: self.pairs]
        student = project_rows(self.student_head, features, rows[drawn])
        loss = info_nce(student, self.teacher_head(teacher[drawn]), self.temperature)
        return Term(loss, {"pairs": torch.tensor(len(drawn))})
