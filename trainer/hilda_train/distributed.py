"""Several processes that train as one: what torchrun starts, and the two places where ranks must agree.

A run on n processes gives the loss of one process with an n-fold batch, to rounding. DistributedDataParallel averages
the gradients; what it does not know is that batch norm must see the whole batch, and that a mean over a varying
number of rows (the cameras that see something) must be divided by the number on all ranks, not by one's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_schema.errors import TrainError

TIMEOUT_S = 600  # of a collective: a frozen rank must not hang the others for half an hour


@dataclass(frozen=True, slots=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0


@contextmanager
def joined(device: torch.device, timeout_s: float = TIMEOUT_S) -> Iterator[World]:
    """Join the processes that torchrun started; alone where it did not start this one.

    Raises:
        TrainError: another process has died or does not answer.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield World(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise TrainError(
            f"another process of this run has died or does not answer: {str(error).splitlines()[0]}",
            "see what it said; the run goes on from its last checkpoint with --resume",
        ) from error
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean over all ranks of a tensor of one shape on all of them, detached; itself where there is one rank."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def max_over_ranks(number: int, device: torch.device) -> int:
    """The largest of all ranks' numbers."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


T = TypeVar("T")


def gather_objects(mine: T) -> list[T]:
    """Every rank's object, in the order of ranks. Sent as pickles, between processes of one run only."""
    if world_size() == 1:
        return [mine]
    found: list[T | None] = [None] * world_size()
    dist.all_gather_object(found, mine)
    return cast("list[T]", found)


def require_same(mine: object, what: str) -> None:
    """Refuse to train together with processes that go by something else, before they wait for each other.

    Args:
        mine: of this rank; compared with the first rank's.
        what: its name in the message.

    Raises:
        TrainError: on every rank, naming the first that differs.
    """
    found = gather_objects(mine)
    odd = next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None)
    if odd is not None:
        raise TrainError(
            f"process {odd} goes by another {what} than process 0: {found[odd]}, not {found[0]}",
            "start all processes with the same options, caches and run folder",
        )


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks; the gradient of a sum is the sum of the gradients."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum_over_ranks(value: Tensor) -> Tensor:
    return cast("Tensor", _SumOverRanks.apply(value))  # type: ignore[no-untyped-call]


class SyncBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the rows of all ranks, on any device; torch's own needs a GPU.

    A rank may have no rows. Where all together have fewer than two, the running statistics are used and left alone, as
    `RowBatchNorm` does in one process.

    Legend: N rows of this rank, C channels.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C) -> (N, C); without other ranks, or in evaluation, exactly `nn.BatchNorm1d`."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        values = input.float()
        sums = _sum_over_ranks(torch.cat([values.sum(0), values.new_full((1,), len(values))]))
        count = sums[-1].detach()
        if count < 2:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        mean = sums[:-1] / count
        # Not E[x^2] - E[x]^2, which is one pass less and loses all digits where the mean is far from zero.
        centred = values - mean
        variance = _sum_over_ranks(centred.square().sum(0)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        out = centred * torch.rsqrt(variance + self.eps)
        if self.affine:
            out = out * self.weight + self.bias
        return out.to(input.dtype)

    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased_variance, momentum)


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Make every `nn.BatchNorm1d` below a module see the rows of all ranks, in place; parameters are kept."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d):  # `RowBatchNorm` too
            child.__class__ = SyncBatchNorm1d
    return module
