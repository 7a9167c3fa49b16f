"""What is captured between two steps comes back to the bit, and what does not fit is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from hilda_schema.errors import TrainError
from hilda_train.checkpoint import Snapshot, open_checkpoint, save
from hilda_train.config.training import AdamWConfig, SgdConfig
from hilda_train.optim import MovingAverage, build_optimizer
from hilda_train.train_state import (
    capture,
    capture_random,
    optimizer_tensors,
    restore,
    restore_random,
    run_state,
    seed_random,
)


class Net(nn.Module):
    """Two layers, one of which never gets a gradient, and a buffer."""

    def __init__(self):
        super().__init__()
        self.used, self.idle, self.norm = nn.Linear(3, 4), nn.Linear(2, 2), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.used(x)).square().sum()


def trained(config, steps, seed=0):
    torch.manual_seed(seed)
    net = Net()
    optimizer, average = build_optimizer(net, config), MovingAverage(net, 0.9)
    advance(net, optimizer, average, steps)
    return net, optimizer, average


def advance(net, optimizer, average, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(5, 3)).backward()
        optimizer.step()
        average.update(net)


def draws():
    """Of every generator, also those that keep half a pair of normal numbers for later."""
    return (
        [random.gauss(0, 1) for _ in range(3)],
        np.random.standard_normal(3).tolist(),
        np.random.randint(1000),
        torch.randn(3).tolist(),
        random.random(),
    )


def test_generators_go_on_where_they_were():
    seed_random(5)
    draws()  # an odd number of normal draws: the other half of a pair waits
    state = capture_random()
    expected = draws()
    seed_random(6)
    assert draws() != expected
    restore_random(state)
    assert draws() == expected


def test_a_seed_settles_every_generator():
    seed_random(2**32 - 1)
    expected = draws()
    seed_random(2**32 - 1)
    assert draws() == expected


CONFIGS = [
    AdamWConfig(),
    SgdConfig(),
    SgdConfig(momentum=0.0, dampening=0.0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["adamw", "sgd", "sgd without momentum"])
def test_a_restored_run_computes_what_it_would_have_computed(config, tmp_path):
    net, optimizer, average = trained(config, 3)
    randoms = [capture_random(), capture_random()]
    path = save(tmp_path, capture(3, net, optimizer, average, randoms, {"mine": 1}), keep=2)
    advance(net, optimizer, average, 3)

    other, its_optimizer, its_average = trained(config, 0, seed=9)
    checkpoint = open_checkpoint(path)
    assert run_state(checkpoint) == {"mine": 1}
    restore(checkpoint, other, its_optimizer, its_average, rank=1)
    advance(other, its_optimizer, its_average, 3)
    for a, b in ((net.state_dict(), other.state_dict()), (average.tensors(), its_average.tensors())):
        assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = optimizer_tensors(optimizer), optimizer_tensors(its_optimizer)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any("idle" in name for name in a)


def test_the_options_of_the_optimiser_are_those_of_the_config(tmp_path):
    net, optimizer, average = trained(AdamWConfig(lr=1e-3), 1)
    path = save(tmp_path, capture(1, net, optimizer, average, [capture_random()], {}), keep=2)
    other, its_optimizer, its_average = trained(AdamWConfig(lr=5e-3, weight_decay=0.5), 0)
    restore(open_checkpoint(path), other, its_optimizer, its_average)
    assert {group["lr"] for group in its_optimizer.param_groups} == {5e-3}


def saved_with(tmp_path, optimizer=None, random_state=None, state=None):
    """A checkpoint of a run in which one part is another."""
    net, made, average = trained(AdamWConfig(), 1)
    taken = capture(1, net, made, average, [capture_random()], {})
    tensors = dict(taken.tensors)
    if optimizer is not None:
        tensors["optimizer"] = {**tensors["optimizer"], **optimizer}
        tensors["optimizer"] = {name: tensor for name, tensor in tensors["optimizer"].items() if tensor is not None}
    if random_state is not None:
        tensors["random-0"] = random_state
    path = save(tmp_path, Snapshot(1, tensors, taken.state if state is None else state), keep=2)
    return open_checkpoint(path), trained(AdamWConfig(), 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exp_avg/nobody.weight": torch.zeros(4, 3)}, "has exp_avg/nobody.weight"),
        ({"evil/used.weight": torch.zeros(4, 3)}, "has evil/used.weight"),
        ({"exp_avg/used.weight": torch.zeros(3, 4)}, r"exp_avg/used.weight is \(3, 4\)"),
        ({"exp_avg/used.weight": torch.zeros(())}, r"exp_avg/used.weight is \(\)"),
        ({"exp_avg/used.weight": None}, "lacks exp_avg/used.weight"),
        ({"step/used.bias": torch.zeros(4)}, r"step/used.bias is \(4,\)"),
    ],
)
def test_an_optimiser_state_that_does_not_fit_is_refused_by_name(tmp_path, change, words):
    checkpoint, parts = saved_with(tmp_path, optimizer=change)
    with pytest.raises(TrainError, match=words):
        restore(checkpoint, *parts)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"torch": torch.zeros(2**20, dtype=torch.uint8)},
        {"python": torch.zeros(3, dtype=torch.int64), "numpy": torch.zeros(3), "torch": torch.zeros(3)},
        dict(capture_random().tensors) | {"torch": torch.zeros(8, dtype=torch.uint8)},
    ],
)
def test_generators_that_are_none_are_refused(tmp_path, tensors):
    checkpoint, parts = saved_with(tmp_path, random_state=tensors)
    with pytest.raises(TrainError, match="holds no state of random generators"):
        restore(checkpoint, *parts)


def test_a_checkpoint_of_fewer_processes_and_one_of_no_run_are_refused(tmp_path):
    checkpoint, parts = saved_with(tmp_path / "a")
    with pytest.raises(TrainError, match="saved by 1 processes, this is number 2"):
        restore(checkpoint, *parts, rank=1)
    checkpoint, parts = saved_with(tmp_path / "b", state={"run": 3})
    with pytest.raises(TrainError, match="not the checkpoint of a training run"):
        restore(checkpoint, *parts)
    with pytest.raises(TrainError, match="not the checkpoint of a training run"):
        run_state(checkpoint)
