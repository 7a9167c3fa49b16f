"""The order of clips, and the loader: the same batches whoever makes them, and errors that reach the user as one."""

from __future__ import annotations

import os
import signal
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilda_schema.errors import HildaError, TrainError, UsageError
from hilda_schema.reader import open_cache
from hilda_train.data import loading
from hilda_train.data.augment import AugmentOptions
from hilda_train.data.batches import Batch, ClipDataset, SampleOptions
from hilda_train.data.clips import clips_of
from hilda_train.data.loading import EpochOrder, TokenPlan, make_loader, with_tokens
from hilda_train.data.scans import ScanOptions
from hilda_train.data.tokens import TeacherLayer, read_scan_tokens
from hilda_train.data.voxelise import VoxelGrid
from hilda_train.distributed import World
from hilda_train.objectives.bev import BevGrid

CPU = torch.device("cpu")
PLAN = TokenPlan((TeacherLayer("vit", "4"), TeacherLayer("cnn", "stage1")), "vit")
SCAN = ScanOptions(VoxelGrid("cartesian", (0.5, 0.5, 0.5)), reduction="random", intensity={"toy": (0.5, 0.3)})
OPTIONS = SampleOptions(
    SCAN, AugmentOptions(dropout=0.3), BevGrid(16.0, 1.0), unseen_is_free=False, history=True, seed=7
)


def dataset_of(url, options=OPTIONS):
    return ClipDataset([url], clips_of(open_cache(url).frames, 0, 0.1), options)


def epoch_of(order, epoch=0, first_step=0):
    order.start(epoch, first_step)
    return list(order)


@given(
    clips=st.integers(0, 60),
    share=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    size=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
)
def test_all_ranks_together_walk_the_order_of_one_process(clips, share, accumulate, size, seed, epoch):
    """A part of a step is the union of its ranks' shares; a step the union of its parts."""
    batch = share * accumulate * size
    alone = epoch_of(EpochOrder(clips, batch, 1, seed, World()), epoch)
    orders = [EpochOrder(clips, batch, accumulate, seed, World(rank, size)) for rank in range(size)]
    ranks = [epoch_of(order, epoch) for order in orders]
    for order, parts in zip(orders, ranks, strict=True):
        assert order.steps == len(alone) == clips // batch
        assert len(order) == len(parts) == len(alone) * accumulate
    for step, whole in enumerate(alone):
        parts = [
            item
            for part in range(step * accumulate, (step + 1) * accumulate)
            for rank in range(size)
            for item in ranks[rank][part]
        ]
        assert parts == whole
    seen = [item for whole in alone for item in whole]
    assert [position for _, position, _ in seen] == list(range(len(seen)))
    assert {number for number, _, _ in seen} <= {epoch}
    numbers = [clip for _, _, clip in seen]
    assert len(set(numbers)) == len(numbers) == clips // batch * batch
    assert set(numbers) <= set(range(clips))


@given(st.integers(0, 10), st.integers(1, 3))
def test_an_epoch_resumed_goes_on_where_it_stopped(first_step, accumulate):
    order = EpochOrder(40, 3 * accumulate, accumulate, 5, World())
    whole = epoch_of(order, 2)
    rest = epoch_of(order, 2, min(first_step, order.steps))
    assert rest == whole[min(first_step, order.steps) * accumulate :]
    assert len(rest) == len(order)


def test_epochs_and_seeds_have_their_own_orders():
    def numbers(seed, epoch):
        return [clip for batch in epoch_of(EpochOrder(50, 5, 1, seed, World()), epoch) for _, _, clip in batch]

    orders = [numbers(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UsageError, match="batch_size = 8 cannot be shared by 3 processes in 2 parts") as error:
        EpochOrder(50, 8, 2, 0, World(0, 3))
    assert "multiple of 6" in error.value.remedy


def same(a, b):
    """Whether two batches, or parts of one, are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, each.name), getattr(b, each.name)) for each in fields(a))
    return a == b


def test_workers_make_the_batches_of_the_main_process_until_they_are_killed(toy):
    """Two workers against none, over two epochs, the second one resumed; then both die and the user is told."""
    data, caches = dataset_of(toy), [open_cache(toy)]
    order, other = (EpochOrder(len(data), 2, 1, 3, World()) for _ in range(2))
    alone, workers = make_loader(data, other, 0, CPU), make_loader(data, order, 2, CPU)
    for epoch, first_step in ((0, 0), (1, 2)):
        order.start(epoch, first_step)
        other.start(epoch, first_step)
        expected = list(alone)
        made = [batch for batch, _ in with_tokens(workers, caches, PLAN)]
        assert len(made) == len(expected) == order.steps - first_step
        assert all(same(a, b) for a, b in zip(made, expected, strict=True))
        assert all(isinstance(batch, Batch) for batch in made)

    stream = with_tokens(workers, caches, PLAN)
    next(stream)
    for worker in workers._iterator._workers:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(TrainError, match="a loader worker failed") as error:
        list(stream)
    assert "\n" not in str(error.value)


def test_an_error_in_a_worker_reaches_the_user_as_one_line_that_names_the_frame(make_cache):
    url = make_cache(scenes=1, frames=4, points=60)
    data = dataset_of(url, replace(OPTIONS, scan=replace(SCAN, grid=VoxelGrid("cartesian", (1e-4, 1e-4, 1e-4)))))
    order = EpochOrder(len(data), 1, 1, 0, World())
    for workers in (0, 1):
        loader = make_loader(data, order, workers, CPU)
        with pytest.raises(TrainError, match=r"frame toy/scene-0000/00000\d: a point has") as error:
            next(with_tokens(loader, [open_cache(url)], PLAN))
        assert type(error.value) is TrainError
        assert error.value.remedy
        assert "\n" not in str(error.value)


def test_a_worker_that_hangs_is_given_up(toy, monkeypatch):
    monkeypatch.setattr(loading, "WORKER_TIMEOUT_S", 1)
    data = dataset_of(toy)
    loader = make_loader(data, EpochOrder(len(data), 1, 1, 0, World()), 1, CPU)
    (worker,) = iter(loader)._workers
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(TrainError, match="gave no batch in 1 s"):
        list(with_tokens(loader, [open_cache(toy)], PLAN))
    assert not worker.is_alive()


def test_passes_over_the_data_draw_nothing_from_the_global_generator(toy):
    """A run that is resumed makes one more pass than one that is not, and must draw the same afterwards."""
    data = dataset_of(toy)
    loader = make_loader(data, EpochOrder(len(data), 5, 1, 3, World()), 0, CPU)
    before, python = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    list(loader)
    list(with_tokens(loader, data.caches, PLAN))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], python)


def test_every_batch_comes_with_its_own_tokens(toy):
    data = dataset_of(toy)
    cache = open_cache(toy)
    order = EpochOrder(len(data), 2, 1, 0, World())
    expected = list(make_loader(data, order, 0, CPU))
    found = list(with_tokens(make_loader(data, order, 0, CPU), [cache], PLAN))
    assert len(found) == len(expected) == 5
    for (batch, tokens), wanted in zip(found, expected, strict=True):
        assert same(batch, wanted)
        assert len(tokens) == len(batch.sources)
        for own, (_, row), kept in zip(
            tokens, batch.sources, torch.split(batch.pair_row, list(batch.pair_counts)), strict=True
        ):
            again = read_scan_tokens(cache, row, kept.numpy(), PLAN.layers, PLAN.global_teacher)
            for a, b in zip(own.layers, again.layers, strict=True):
                np.testing.assert_array_equal(a.values, b.values)
            np.testing.assert_array_equal(own.global_token, again.global_token)


def test_an_error_stops_the_stream_after_the_batches_before_it(toy):
    data = dataset_of(toy)
    batches = list(make_loader(data, EpochOrder(len(data), 2, 1, 0, World()), 0, CPU))
    error = TrainError("frame x: broken", "mend it")
    stream = with_tokens(iter([batches[0], error, batches[1]]), [open_cache(toy)], PLAN)
    assert same(next(stream)[0], batches[0])
    with pytest.raises(TrainError) as raised:
        next(stream)
    assert raised.value is error


def test_tokens_that_cannot_be_read_are_an_error_of_the_cache(make_cache):
    url = make_cache(scenes=1, frames=3, points=60, seed=8)
    data = dataset_of(url)
    loader = make_loader(data, EpochOrder(len(data), 1, 1, 0, World()), 0, CPU)
    for file in Path(url).rglob("vit/layer_4/tokens/c.*"):
        file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(HildaError, match="tokens"):
        list(with_tokens(loader, [open_cache(url)], PLAN))


def test_a_stream_that_is_left_early_leaves_no_thread(toy):
    import threading

    data = dataset_of(toy)
    loader = make_loader(data, EpochOrder(len(data), 1, 1, 0, World()), 0, CPU)
    stream = with_tokens(loader, [open_cache(toy)], PLAN)
    next(stream)
    assert any(thread.name.startswith("tokens") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("tokens") for thread in threading.enumerate())
