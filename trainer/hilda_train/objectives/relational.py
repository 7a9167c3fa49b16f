"""Relational distillation: the student's features shall relate to each other as the teacher's do.

Image-to-LiDAR relational distillation (arXiv 2409.00845). With k_i, q_i the normalised features of N pairs of a camera:

    L_cross = 1/N sum_i |k_i.q_i - q_i.q_i| + 1/(N^2 - N) sum_{i != j} |k_i.q_j - q_i.q_j|
    L_intra = 1/(N^2 - N) sum_{i != j} |k_i.k_j - q_i.q_j|

The first sum of L_cross is the cosine distance 1 - cos(k_i, q_i). Beside point distillation, which has that term
already, it is left out (`diagonal=False`).

The matrices are N x N, so a draw of pairs is used, stratified over the image: a plain draw would be mostly road.

Legend: P pairs, D channels, N drawn pairs of one camera.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hilda_train.objectives.reductions import at_least_float32
from hilda_train.objectives.term import Term

# Rows and columns of image tiles that share a draw; about one tile for each 4 x 4 block of ViT tokens at 224 x 448.
_TILES = (4, 8)


def stratified_pairs(
    uv01: Tensor, camera: Tensor, per_camera: int = 2048, generator: torch.Generator | None = None
) -> Tensor:
    """Draw pairs so that every tile of the image gives as many as every other, while it has any left.

    Args:
        uv01: (P, 2) position in the image, each in [0, 1].
        camera: (P,) int64 (sample, camera) group.
        per_camera: the most pairs drawn from a camera.
        generator: source of the draw, on the pairs' device; None: torch's own.

    Returns:
        (Q,) int64 rows, sorted by camera; all pairs of a camera that has no more than `per_camera`.
    """
    rows, columns = _TILES
    tile_row = (uv01[:, 1] * rows).long().clamp(0, rows - 1)
    tile_column = (uv01[:, 0] * columns).long().clamp(0, columns - 1)
    tile = (camera * rows + tile_row) * columns + tile_column
    shuffled = torch.randperm(len(tile), generator=generator, device=tile.device)
    order = shuffled[tile[shuffled].argsort(stable=True)]
    turn = _rank_in_run(tile[order])
    # Round-robin: first of every tile, then second of every tile, ... Ties keep the tiles' order, so a last,
    # incomplete round is shuffled first, or it would always favour the upper tiles.
    mixed = torch.randperm(len(turn), generator=generator, device=tile.device)
    order, turn = order[mixed], turn[mixed]
    by_turn = turn.argsort(stable=True)
    order = order[by_turn][camera[order[by_turn]].argsort(stable=True)]
    return order[_rank_in_run(camera[order]) < per_camera]


def relational_loss(
    student: Tensor,
    teacher: Tensor,
    camera: Tensor,
    *,
    cross_weight: float = 1.0,
    intra_weight: float = 1.0,
    diagonal: bool = True,
) -> Term:
    """Weighted sum of both terms, each a mean over the cameras with at least two pairs.

    Args:
        student: (Q, D) head outputs at drawn pairs.
        teacher: (Q, D).
        camera: (Q,) int64, sorted, as `stratified_pairs` gives it.
        cross_weight: of L_cross.
        intra_weight: of L_intra.
        diagonal: include the cosine distance of each pair in the cross-modal term.

    Returns:
        The term; logs "cross", "intra" (before weights) and "cameras".
    """
    k, q = F.normalize(at_least_float32(student), dim=1), F.normalize(at_least_float32(teacher), dim=1)
    sizes = torch.unique_consecutive(camera, return_counts=True)[1].tolist()
    # An empty sum that still belongs to the graph: no camera, no gradient, but no missing one either.
    cross, intra = [k.sum() * 0], [k.sum() * 0]
    with torch.autocast(k.device.type, enabled=False):
        for k_camera, q_camera in zip(torch.split(k, sizes), torch.split(q, sizes), strict=True):
            if len(k_camera) < 2:
                continue
            image = q_camera @ q_camera.T
            cross.append(_gap(k_camera @ q_camera.T, image, diagonal=diagonal))
            intra.append(_gap(k_camera @ k_camera.T, image, diagonal=False))
    cameras = len(cross) - 1
    cross_loss, intra_loss = (torch.stack(terms).sum() / max(cameras, 1) for terms in (cross, intra))
    logs = {"cross": cross_loss.detach(), "intra": intra_loss.detach(), "cameras": torch.tensor(cameras)}
    return Term(cross_weight * cross_loss + intra_weight * intra_loss, logs)


def _gap(relations: Tensor, image: Tensor, *, diagonal: bool) -> Tensor:
    """() mean off-diagonal |difference| of two (N, N) matrices, plus the mean of the diagonal if asked for."""
    difference = (relations - image).abs()
    on_diagonal = difference.diagonal().sum()
    size = len(difference)
    gap = (difference.sum() - on_diagonal) / (size * size - size)
    return gap + on_diagonal / size if diagonal else gap


def _rank_in_run(values: Tensor) -> Tensor:
    """(P,) position of each element within its run of equal neighbours."""
    lengths: Tensor = torch.unique_consecutive(values, return_counts=True)[1]
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return torch.arange(len(values), device=values.device) - first
