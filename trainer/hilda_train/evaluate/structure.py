"""How representations are built: what relates to what, how features spread, how many directions they use.

Relational distillation (arXiv 2409.00845) claims that the gap between the structures of image and LiDAR features
predicts zero- and few-shot quality. Its own measures are not published; these are the common ones. All of them see
rows of unit length: the losses look at directions only, so lengths carry no meaning.

    Gram gap      mean over i != j of |k_i.k_j - q_i.q_j|, what `objectives.relational` calls L_intra
    linear CKA    |Q'K|^2 / (|K'K| |Q'Q|) of centred columns, Frobenius norms       Kornblith et al., ICML 2019
    uniformity    log mean over i != j of exp(-2 |k_i - k_j|^2); 0 where all rows are one, lower is more spread
                                                                                    Wang and Isola, ICML 2020
    tolerance     mean over i != j of one class of k_i.k_j; labels judge here, they never teach
                                                                                    Wang and Liu, CVPR 2021
    RankMe        exp of the entropy of s / sum(s), s the singular values; between 1 and min(N, D)
                                                                                    Garrido et al., ICML 2023

Beside them stands what the gap is said to predict, so that one curve shows both:

    zero-shot     mean over classes of the share of rows that are nearest to the teacher's mean row of their class

Legend: N rows, C and D channels; everything is computed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hilda_train.evaluate.nearest import ClassMeans, prototype_classes

RANKME_EPSILON = 1e-7  # of the paper: keeps the logarithm of a vanished singular value finite


def unit_rows(rows: Tensor) -> Tensor:
    """(N, C) rows of any length -> (N, C) float64 of length one; a zero row stays zero."""
    return F.normalize(rows.double(), dim=1)


def gram_gap(student: Tensor, teacher: Tensor) -> float:
    """Mean absolute difference of the two Gram matrices off their diagonals.

    Args:
        student: (N, C), at least two rows.
        teacher: (N, D); the widths need not agree.
    """
    k, q = unit_rows(student), unit_rows(teacher)
    difference = (k @ k.T - q @ q.T).abs_()
    return float((difference.sum() - difference.diagonal().sum()) / (len(k) * (len(k) - 1)))


def linear_cka(student: Tensor, teacher: Tensor) -> float:
    """Linear centred kernel alignment, 0 to 1; blind to rotation, and to one scale of all features.

    Args:
        student: (N, C).
        teacher: (N, D).

    Returns:
        NaN where all rows of one of them are the same.
    """
    k, q = unit_rows(student), unit_rows(teacher)
    k, q = k - k.mean(dim=0), q - q.mean(dim=0)
    shared = torch.linalg.matrix_norm(q.T @ k).square()
    norms = torch.linalg.matrix_norm(k.T @ k) * torch.linalg.matrix_norm(q.T @ q)
    # What centring leaves of identical rows is rounding, and a ratio of roundings is no alignment.
    least = len(k) * torch.finfo(torch.float64).eps
    return float(shared / norms) if norms > least**2 else float("nan")


def uniformity(rows: Tensor) -> float:
    """Log E exp(-2 |a - b|^2) over distinct rows of (N, C); at most 0, at least -8."""
    unit = unit_rows(rows)
    apart = (2 - 2 * unit @ unit.T).clamp_(min=0)
    potential = torch.exp(-2 * apart)
    return float(((potential.sum() - potential.diagonal().sum()) / (len(unit) * (len(unit) - 1))).log())


def tolerance(rows: Tensor, label: Tensor) -> float:
    """Mean cosine of distinct rows of one class.

    Args:
        rows: (N, C).
        label: (N,) integer classes.

    Returns:
        NaN where no class has two rows.
    """
    unit = unit_rows(rows)
    # The sum over i, j of one class is |sum of its rows|^2, and the diagonal takes away the rows' own squares.
    classes, member = torch.unique(label, return_inverse=True)
    sums = unit.new_zeros((len(classes), unit.shape[1])).index_add_(0, member, unit)
    count = torch.bincount(member).double()
    pairs = (count * (count - 1)).sum()
    return float((sums.square().sum() - unit.square().sum()) / pairs) if pairs else float("nan")


def rankme(rows: Tensor) -> float:
    """Effective rank of (N, C) rows."""
    singular = torch.linalg.svdvals(unit_rows(rows))
    share = singular / singular.sum().clamp(min=torch.finfo(torch.float64).tiny) + RANKME_EPSILON
    return float(torch.exp(-(share * share.log()).sum()))


def zeroshot_accuracy(rows: Tensor, teacher: Tensor, label: Tensor) -> float:
    """Balanced accuracy of rows that take the class of the nearest of the teacher's class means, by cosine.

    Args:
        rows: (N, D) of the student, or the teacher's own.
        teacher: (N, D).
        label: (N,) integer classes.
    """
    classes, member = torch.unique(label, return_inverse=True)
    means = ClassMeans(len(classes), teacher.shape[1])
    means.add(teacher, member)
    right = (prototype_classes(rows.float(), means.prototypes()) == member).double()
    hits = right.new_zeros(len(classes)).index_add_(0, member, right)
    return float((hits / torch.bincount(member)).mean())


def structure_of(rows: Tensor, label: Tensor | None) -> dict[str, float]:
    """One representation by itself: (N, C) rows, and their (N,) classes where they are known."""
    found = {"uniformity": uniformity(rows), "rankme": rankme(rows)}
    return found if label is None else found | {"tolerance": tolerance(rows, label)}


def structure_between(rows: Tensor, teacher: Tensor) -> dict[str, float]:
    """One representation, (N, C), against the teacher's, (N, D)."""
    return {"gram_gap": gram_gap(rows, teacher), "cka": linear_cka(rows, teacher)}
