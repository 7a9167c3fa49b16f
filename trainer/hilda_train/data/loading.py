"""Batches in a fixed order, ahead of time, by workers that cannot hang a run.

The order of an epoch follows from the seed and the epoch alone. A global batch of n processes is one run of that
order, cut in n: the same clips meet in a step whatever the number of processes or workers.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerProcess
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hilda_schema.errors import HildaError, TrainError, UsageError
from hilda_schema.reader import Cache
from hilda_train.data.batches import Batch, ClipDataset, collate
from hilda_train.data.tokens import ScanTokens, TeacherLayer, read_tokens
from hilda_train.distributed import World

WORKER_TIMEOUT_S = 300  # for one batch; torch waits for ever, or with a timeout of its own overlooks dead workers
AHEAD = 2  # batches prepared beyond the one in use: more costs memory and hides nothing

T = TypeVar("T")
_REMEDY = "look for the out-of-memory killer in the system log; lower data.workers or data.batch_size"


class EpochOrder(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, position, clip) for one process.

    Args:
        clips: how many there are.
        batch: clips of an optimiser step, over all processes and accumulated parts.
        accumulate: parts that a step is split into, one after the other.
        seed: of the order.
        world: which share of every part is this process's.

    Raises:
        UsageError: the batch cannot be shared evenly.
    """

    def __init__(self, clips: int, batch: int, accumulate: int, seed: int, world: World) -> None:
        self.share, rest = divmod(batch, accumulate * world.size)
        if rest:
            raise UsageError(
                f"data.batch_size = {batch} cannot be shared by {world.size} processes in {accumulate} parts each",
                f"choose a multiple of {accumulate * world.size}",
            )
        self.clips, self.batch, self.accumulate, self.seed, self.world = clips, batch, accumulate, seed, world
        self.epoch, self.first_step = 0, 0

    @property
    def steps(self) -> int:
        """Optimiser steps of a whole epoch; clips that do not fill one wait for another epoch's order."""
        return self.clips // self.batch

    def start(self, epoch: int, first_step: int) -> None:
        """Where the next pass begins."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.clips)
        for part in range(self.first_step * self.accumulate, self.steps * self.accumulate):
            first = (part * self.world.size + self.world.rank) * self.share
            yield [(self.epoch, k, int(order[k])) for k in range(first, first + self.share)]


def make_loader(dataset: ClipDataset, order: EpochOrder, workers: int, device: torch.device) -> DataLoader[Any]:
    """A loader over an epoch's batches, see `loader_of`."""
    bev = dataset.options.bev
    return loader_of(dataset, order, partial(collate, cells=bev.cells if bev else 1), workers, device)


def loader_of(
    dataset: Dataset[Any],
    order: Iterable[list[tuple[int, int, int]]],
    joining: Callable[[list[Any]], Any],
    workers: int,
    device: torch.device,
) -> DataLoader[Any]:
    """A loader over batches of (epoch, position, item) of any dataset.

    Workers start from a clean process (`forkserver`): stores and threads that the parent has opened do not survive a
    fork. They stay for the whole run and hold at most `AHEAD` batches each.

    A loader draws a seed for its workers at the start of every pass. It must not come from torch's global generator:
    a run that is resumed makes one pass more, and all that is drawn afterwards (drop path) would be another draw.
    """
    pinned, own = device.type == "cuda", torch.Generator()
    if not workers:
        return DataLoader(dataset, batch_sampler=order, collate_fn=joining, pin_memory=pinned, generator=own)
    multiprocessing.set_forkserver_preload([__name__])  # torch is imported once, not once a worker
    return DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=joining,
        num_workers=workers,
        multiprocessing_context="forkserver",
        persistent_workers=True,
        prefetch_factor=AHEAD,
        pin_memory=pinned,
        generator=own,
    )


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """Which stored tokens a run reads."""

    layers: tuple[TeacherLayer, ...]
    global_teacher: str | None


def with_tokens(
    batches: Iterable[Batch | HildaError], caches: Sequence[Cache], plan: TokenPlan
) -> Iterator[tuple[Batch, list[ScanTokens]]]:
    """Batches with their tokens, read on a thread while the step before runs.

    Raises:
        HildaError: what a worker met; TrainError where one died or hung.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens")
    try:
        reader = _read(batches, caches, plan)  # after an error it is at its end, and nothing more is asked for
        ready = deque(pool.submit(next, reader, None) for _ in range(AHEAD))
        while (item := _result(ready.popleft())) is not None:
            ready.append(pool.submit(next, reader, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def _read(
    batches: Iterable[Batch | HildaError], caches: Sequence[Cache], plan: TokenPlan
) -> Iterator[tuple[Batch, list[ScanTokens]]]:
    for batch in made(batches):
        yield batch, read_tokens(batch, caches, plan.layers, plan.global_teacher)


def made(batches: Iterable[T | HildaError]) -> Iterator[T]:
    """A loader's batches; its errors as ours.

    Raises:
        HildaError: what a worker met; TrainError where one died.
    """
    try:
        for batch in batches:
            if isinstance(batch, HildaError):
                raise batch
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        # What torch raises, within seconds, for a worker that was killed or ran out of memory.
        raise TrainError(f"a loader worker failed: {(str(error) or repr(error)).splitlines()[0]}", _REMEDY) from error


def _result(future: Future[tuple[Batch, list[ScanTokens]] | None]) -> tuple[Batch, list[ScanTokens]] | None:
    if not wait([future], WORKER_TIMEOUT_S).done:
        # Without its workers the loader gives up, so that the thread which waits for it ends.
        for child in multiprocessing.active_children():
            if isinstance(child, ForkServerProcess):
                child.kill()
        raise TrainError(f"the loader workers gave no batch in {WORKER_TIMEOUT_S} s", _REMEDY)
    return future.result()
