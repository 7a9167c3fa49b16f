"""Classification by what lies near: nothing is trained, so nothing but the features is judged.

    k nearest neighbours    votes of the k labelled features of the largest cosine, weighted by exp(cosine / T)
                            (Wu et al., CVPR 2018, with T = 0.07; DINO's k = 20)
    prototypes              the class whose prototype has the largest product with the feature: means of labelled
                            features (nearest class mean), or embeddings of a class's name (zero-shot)

Legend: N features to be judged, L labelled ones, K classes, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07
CHUNK = 4096  # features compared with all labelled ones at a time


def knn_classes(
    feats: Tensor, bank: Tensor, label: Tensor, classes: int, k: int = 20, temperature: float = TEMPERATURE
) -> Tensor:
    """Classes by a weighted vote of the nearest labelled features.

    Args:
        feats: (N, C) any length.
        bank: (L, C) any length, at least one.
        label: (L,) int64 in [0, K).
        classes: K.
        k: neighbours that vote; all there are, where they are fewer.
        temperature: T; small makes the nearest one decide.

    Returns:
        (N,) int64; the lower class of two with the same votes.
    """
    unit, labelled = F.normalize(feats, dim=1), F.normalize(bank, dim=1)
    found = []
    for part in torch.split(unit, CHUNK):
        cosine, row = (part @ labelled.T).topk(min(k, len(labelled)), dim=1)
        # Relative to the nearest one, or small temperatures overflow.
        weight = torch.exp((cosine - cosine[:, :1]) / temperature)
        votes = weight.new_zeros((len(part), classes)).scatter_add_(1, label[row], weight)
        found.append(votes.argmax(dim=1))
    return torch.cat(found) if found else label.new_zeros(0)


class ClassMeans:
    """Means of the unit features of each class, over as many sweeps as are added."""

    def __init__(self, classes: int, channels: int) -> None:
        self.sums = torch.zeros(classes, channels, dtype=torch.float64)

    def add(self, feats: Tensor, label: Tensor) -> None:
        """Add (L, C) features with (L,) classes; those below zero count nowhere."""
        known = label >= 0
        self.sums.index_add_(0, label[known].cpu(), F.normalize(feats[known].double(), dim=1).cpu())

    def prototypes(self) -> Tensor:
        """(K, C) float32 unit vectors; NaN for a class that never occurred."""
        length = self.sums.norm(dim=1, keepdim=True)
        return torch.where(length > 0, self.sums / length, torch.nan).float()


def prototype_classes(feats: Tensor, prototypes: Tensor) -> Tensor:
    """Classes by the largest product with a prototype: by cosine, where these have length one.

    Args:
        feats: (N, C) any length.
        prototypes: (K, C); a row of NaN is a class that is never chosen.

    Returns:
        (N,) int64.
    """
    known = ~prototypes.isnan().any(dim=1)
    score = F.normalize(feats, dim=1) @ prototypes.nan_to_num().T
    return score.masked_fill(~known, -torch.inf).argmax(dim=1)
