"""What each of several ranks asserts by itself; test_distributed.py starts them."""

import sys
import time

import torch
from torch import nn

from hilda_schema.errors import TrainError
from hilda_train.distributed import (
    SyncBatchNorm1d,
    World,
    gather_objects,
    joined,
    mean_over_ranks,
    require_same,
    synchronise_batch_norm,
)
from hilda_train.students.sparse import RowBatchNorm

CHANNELS, STEPS = 3, 3


def shares(world, counts, seed, mean):
    """(N, C) rows of all ranks for some steps, and which are this rank's."""
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor([0, *counts]).cumsum(0).tolist()
    rows = [mean + torch.randn(bounds[-1], CHANNELS, generator=generator) for _ in range(STEPS)]
    return rows, slice(bounds[world.rank], bounds[world.rank + 1])


def check_batch_norm(world, counts, mean):
    """Outputs, gradients and running statistics are those of float64 batch norm over the rows of all ranks."""
    rows, mine = shares(world, counts, 1, mean)
    torch.manual_seed(2)
    norm, whole = RowBatchNorm(CHANNELS), nn.BatchNorm1d(CHANNELS).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    whole.load_state_dict(norm.state_dict())
    norm = synchronise_batch_norm(nn.Sequential(norm))[0]
    assert type(norm) is SyncBatchNorm1d
    close = {"rtol": 1e-4, "atol": 1e-4}  # the mean of 300 alone is rounded by 1.5e-5
    for step in rows:
        own, all_rows = step[mine].clone().requires_grad_(), step.double().requires_grad_()
        factor = torch.linspace(-1, 2, step.numel(), dtype=torch.float64).reshape(step.shape)
        found, expected = norm(own), whole(all_rows)
        torch.testing.assert_close(found.double(), expected[mine], **close)
        norm.zero_grad()
        whole.zero_grad()
        (found * factor[mine]).pow(2).sum().backward()
        (expected * factor).pow(2).sum().backward()
        torch.testing.assert_close(own.grad.double(), all_rows.grad[mine], rtol=1e-3, atol=1e-3)
        for name, parameter in norm.named_parameters():
            summed = mean_over_ranks(parameter.grad) * world.size
            torch.testing.assert_close(summed.double(), whole.get_parameter(name).grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_mean.double(), whole.running_mean, **close)
    torch.testing.assert_close(norm.running_var.double(), whole.running_var, **close)
    assert int(norm.num_batches_tracked) == STEPS
    norm.eval()
    whole.eval()
    torch.testing.assert_close(norm(rows[0]).double(), whole(rows[0].double()), **close)


def check_too_few_rows(world):
    """One row on one rank, none on the other: the running statistics are used and kept, as in one process."""
    rows, mine = shares(world, (1, 0), 3, 0.0)
    alone = RowBatchNorm(CHANNELS)
    alone.running_mean.fill_(0.5)
    norm = RowBatchNorm(CHANNELS)
    norm.load_state_dict(alone.state_dict())
    synchronise_batch_norm(norm)
    torch.testing.assert_close(norm(rows[0][mine]), alone(rows[0])[mine])
    assert torch.equal(norm.running_mean, alone.running_mean)


def check_agreement(world):
    assert gather_objects({"rank": world.rank}) == [{"rank": rank} for rank in range(world.size)]
    assert mean_over_ranks(torch.tensor([1.0, 2.0 * world.rank])).tolist() == [1.0, 1.0]
    require_same({"a": [1, 2]}, "list")
    refused = ""
    try:
        require_same(("seen", world.rank), "store")
    except TrainError as error:
        refused = str(error)
    assert "process 1 goes by another store than process 0: ('seen', 1), not ('seen', 0)" in refused


def wait_for_a_frozen_rank():
    """Rank 1 does not answer; rank 0 is told so before it does."""
    with joined(torch.device("cpu"), timeout_s=2) as world:
        if world.rank == 1:
            time.sleep(10)
        else:
            mean_over_ranks(torch.ones(()))


if __name__ == "__main__":
    if sys.argv[2:] == ["frozen"]:
        wait_for_a_frozen_rank()
        sys.exit()
    with joined(torch.device("cpu"), timeout_s=60) as world:
        assert world == World(int(sys.argv[1]), 2, int(sys.argv[1]))
        for counts in ((5, 9), (0, 4), (1, 1)):
            for mean in (0.0, 300.0):
                check_batch_norm(world, counts, mean)
        check_too_few_rows(world)
        check_agreement(world)
