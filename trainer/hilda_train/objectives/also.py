"""Control arm for the diffusion: ALSO, the surface of the same sweep instead of the occupancy of a later one.

ALSO (arXiv 2212.05867). A ray that returned from p was free on its way and met something at p. Three kinds of query
points, in equal number, with d the ray's direction and u uniform in [0, 1]:

    in    p + u margin d            occupied: just behind the return
    out   p - u margin d            free: just before it
    far   origin + u (p - origin)   free: anywhere on the way

Every support (a row of student features) within a radius of a query predicts the query's occupancy from its own latent
and their relative position alone:

    L = BCE(occupancy) over all (query, support) pairs + L1(intensity) over those of "in" and "out" queries

Legend: N returns, Q queries, M supports, C student channels, D hidden channels, R (query, support) pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_train.objectives.reductions import at_least_float32
from hilda_train.objectives.term import Term


class Queries(NamedTuple):
    """Points whose occupancy is known from the rays."""

    xyz_m: Tensor  # (Q, 3) LiDAR frame
    occupied: Tensor  # (Q,) bool
    near: Tensor  # (Q,) bool: "in" or "out", whose intensity is that of the return
    source: Tensor  # (Q,) int64, the return that the query was made from


def sample_queries(
    xyz_m: Tensor,
    origin_m: Tensor,
    count: int = 2048,
    margin_m: float = 0.1,
    generator: torch.Generator | None = None,
) -> Queries:
    """Draw queries from one sweep.

    Args:
        xyz_m: (N, 3) returns.
        origin_m: (3,) where the rays start, same frame: the sensor, not necessarily the zero of the frame.
        count: number of queries; "in" takes what thirds leave over. Drawn without repetition within a kind, so a sweep
            with fewer returns than count / 3 gives fewer.
        margin_m: how thick a surface is taken to be.
        generator: source of the draw, on the points' device; None: torch's own.
    """
    third = count // 3
    sizes = (count - 2 * third, third, third)
    device = xyz_m.device
    draws = [torch.randperm(len(xyz_m), generator=generator, device=device)[:size] for size in sizes]
    u_in, u_out, u_far = (
        torch.rand(len(draw), 1, generator=generator, device=device, dtype=xyz_m.dtype) for draw in draws
    )
    inside, outside, far = (xyz_m[draw] for draw in draws)
    direction_in, direction_out = F.normalize(inside - origin_m, dim=1), F.normalize(outside - origin_m, dim=1)
    # Never beyond the sensor: a return nearer than the margin has only the way to the sensor before it.
    before = (outside - origin_m).norm(dim=1, keepdim=True).clamp(max=margin_m)
    points = (
        inside + u_in * margin_m * direction_in,
        outside - u_out * before * direction_out,
        origin_m + u_far * (far - origin_m),
    )
    source = torch.cat(draws)
    kind = torch.arange(3, device=device).repeat_interleave(torch.tensor([len(d) for d in draws], device=device))
    return Queries(torch.cat(points), kind == 0, kind < 2, source)


def radius_pairs(
    query_m: Tensor,
    query_sample: Tensor,
    support_m: Tensor,
    support_sample: Tensor,
    radius_m: float,
    limit: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Supports within a radius of each query, in the same sample; at most `limit` a query, drawn at random.

    Supports are sorted into cubes of one radius; a query looks at the 27 around it, as 9 runs of 3 along z.

    Args:
        query_m: (Q, 3).
        query_sample: (Q,) int64.
        support_m: (M, 3).
        support_sample: (M,) int64.
        radius_m: a support at exactly this distance counts.
        limit: largest number of supports of one query.
        generator: source of the draw; None: torch's own.

    Returns:
        (R,) int64 rows of the queries, sorted, and (R,) int64 rows of the supports.
    """
    query_cube, support_cube = _cubes(query_m, query_sample, support_m, support_sample, radius_m)
    sorted_cube, support_order = support_cube.sort()
    start = torch.searchsorted(sorted_cube, query_cube - 1)
    length = torch.searchsorted(sorted_cube, query_cube + 1, right=True) - start
    start, length = start.flatten(), length.flatten()
    run = torch.arange(len(length), device=length.device).repeat_interleave(length)
    within_run = torch.arange(len(run), device=run.device) - (length.cumsum(0) - length)[run]
    support = support_order[start[run] + within_run]
    query = run // query_cube.shape[1]
    close = (query_m[query] - support_m[support]).norm(dim=1) <= radius_m
    query, support = query[close], support[close]

    shuffled = torch.randperm(len(query), generator=generator, device=query.device)
    shuffled = shuffled[query[shuffled].argsort(stable=True)]
    query, support = query[shuffled], support[shuffled]
    count = torch.bincount(query, minlength=len(query_m))
    rank = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[query]
    return query[rank < limit], support[rank < limit]


def _cubes(
    query_m: Tensor, query_sample: Tensor, support_m: Tensor, support_sample: Tensor, side_m: float
) -> tuple[Tensor, Tensor]:
    """(Q, 9) cube numbers of the columns around each query, and (M,) of the supports; +-1 is a step along z."""
    both = torch.cat((query_m, support_m))
    index = (both / side_m).floor().long()
    if len(index):
        index = index - index.amin(dim=0)
    # One spare cube on each side of every axis keeps a neighbour's number from meaning a cube elsewhere.
    index = index + 1
    size = index.amax(dim=0) + 2 if len(index) else index.new_ones(3)
    sample = torch.cat((query_sample, support_sample))
    cube = ((sample * size[0] + index[:, 0]) * size[1] + index[:, 1]) * size[2] + index[:, 2]
    step = torch.arange(-1, 2, device=cube.device)
    around = ((step[:, None] * size[1] + step[None, :]) * size[2]).flatten()
    return cube[: len(query_m), None] + around, cube[len(query_m) :]


def also_loss(prediction: Tensor, occupied: Tensor, intensity: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms, each a mean over its pairs; zero where there is none.

    Args:
        prediction: (R, 2) occupancy logit and intensity.
        occupied: (R,) bool, of the pair's query.
        intensity: (R,) of the return that the query was made from.
        near: (R,) bool: the pair counts for intensity.

    Returns:
        () BCE and () L1.
    """
    prediction = at_least_float32(prediction)
    truth = occupied.to(prediction.dtype)
    bce = F.binary_cross_entropy_with_logits(prediction[:, 0], truth, reduction="sum") / max(len(truth), 1)
    difference = (prediction[:, 1] - intensity.to(prediction.dtype)).abs()
    return bce, (difference * near).sum() / near.sum().clamp(min=1)


class Also(nn.Module):
    """Latents, search and the decoder.

    Args:
        channels: C.
        hidden: D, of the latents and of the decoder.
        radius_m: how far a support is asked.
        supports: most supports of one query. The published code inherits this bound from its search library.
        intensity_weight: weight of the L1 term.
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int = 128,
        radius_m: float = 1.0,
        supports: int = 32,
        intensity_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.latent = nn.Linear(channels, hidden)
        self.decoder = nn.Sequential(
            nn.Linear(hidden + 3, hidden),
            *(nn.ReLU(), nn.Linear(hidden, hidden)),
            *(nn.ReLU(), nn.Linear(hidden, hidden)),
            *(nn.ReLU(), nn.Linear(hidden, 2)),
        )
        self.radius_m = radius_m
        self.intensity_weight = intensity_weight
        self.supports = supports

    def forward(
        self,
        features: Tensor,
        xyz_m: Tensor,
        sample: Tensor,
        queries: Queries,
        query_sample: Tensor,
        query_intensity: Tensor,
        generator: torch.Generator | None = None,
    ) -> Term:
        """Both losses for queries of several samples.

        Args:
            features: (M, C), a row for each point or voxel.
            xyz_m: (M, 3) positions of the rows, same frame as the queries.
            sample: (M,) int64.
            queries: Q queries, concatenated over samples.
            query_sample: (Q,) int64.
            query_intensity: (Q,) intensity of each query's return, as the student's input has it.
            generator: source of the choice among supports; None: torch's own.
        """
        query, support = radius_pairs(
            queries.xyz_m, query_sample, xyz_m, sample, self.radius_m, self.supports, generator
        )
        relative_m = queries.xyz_m[query] - xyz_m[support]
        latents = self.latent(features).index_select(0, support)
        prediction = self.decoder(torch.cat((latents, relative_m.to(latents.dtype)), dim=1))
        bce, l1 = also_loss(prediction, queries.occupied[query], query_intensity[query], queries.near[query])
        logs = {"occupancy": bce.detach(), "intensity": l1.detach(), "pairs": torch.tensor(len(query))}
        return Term(bce + self.intensity_weight * l1, logs)
