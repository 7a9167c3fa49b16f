"""Batches in a fixed order, ahead of time, by workers that cannot hang a run.

The order of an epoch follows from the seed and the epoch alone. A global batch of n processes is one run of that
order, cut in n: the same clips meet in a step whatever the number of processes or workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from hilda_schema.errors import HildaError, TrainError, UsageError
from hilda_schema.reader import Cache
from hilda_train.data.batches import Batch, ClipDataset, collate
from hilda_train.data.tokens import ScanTokens, TeacherLayer, read_scan_tokens
from hilda_train.distributed import World

WORKER_TIMEOUT_S = 300  # for one batch; the default of torch is to wait for ever
AHEAD = 2  # batches prepared beyond the one in use: more costs memory and hides nothing


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
    """A loader over an epoch's batches.

    Workers start from a clean process (`forkserver`): stores and threads that the parent has opened do not survive a
    fork. They stay for the whole run and hold at most `AHEAD` batches each.
    """
    bev = dataset.options.bev
    joining = partial(collate, cells=bev.cells if bev else 1)
    if not workers:
        return DataLoader(dataset, batch_sampler=order, collate_fn=joining, pin_memory=device.type == "cuda")
    return DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=joining,
        num_workers=workers,
        multiprocessing_context="forkserver",
        persistent_workers=True,
        prefetch_factor=AHEAD,
        timeout=WORKER_TIMEOUT_S,
        pin_memory=device.type == "cuda",
    )


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """Which stored tokens a run reads."""

    layers: tuple[TeacherLayer, ...]
    global_teacher: str | None


def with_tokens(
    batches: Iterator[Batch | HildaError], caches: Sequence[Cache], plan: TokenPlan
) -> Iterator[tuple[Batch, list[ScanTokens]]]:
    """Batches with their tokens, read on a thread while the step before runs.

    Raises:
        TrainError: a worker died or hung.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens") as pool:
        ready: deque[Future[tuple[Batch, list[ScanTokens]] | None]] = deque()
        step = _reader(batches, caches, plan)
        ready.extend(pool.submit(step) for _ in range(AHEAD))
        while (item := _result(ready.popleft())) is not None:
            ready.append(pool.submit(step))
            yield item
        # The iterator is at its end; what was asked for beyond it ends at once.
        for future in ready:
            future.cancel()


def _reader(
    batches: Iterator[Batch | HildaError], caches: Sequence[Cache], plan: TokenPlan
) -> Callable[[], tuple[Batch, list[ScanTokens]] | None]:
    def step() -> tuple[Batch, list[ScanTokens]] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        if isinstance(batch, HildaError):
            raise batch
        tokens = [
            read_scan_tokens(caches[cache], row, plan.layers, plan.global_teacher) for cache, row in batch.sources
        ]
        return batch, tokens

    return step


def _result(future: Future[tuple[Batch, list[ScanTokens]] | None]) -> tuple[Batch, list[ScanTokens]] | None:
    try:
        return future.result()
    except RuntimeError as error:
        # What torch raises for a worker that was killed, ran out of memory or does not answer.
        raise TrainError(
            f"a loader worker failed: {str(error).splitlines()[0]}",
            "look for the out-of-memory killer in the system log; lower data.workers or data.batch_size",
        ) from error
