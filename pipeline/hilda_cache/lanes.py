"""How a worker process keeps its model busy: three lanes, side by side, with one part at a time in each.

    load    hash -> read -> decode -> project     threads of their own, a few frames ahead of the model
    teach   the model
    store   encode -> write                        while the model sees the next part

A part leaves the teach lane when the store lane has taken it. So a slow disk holds up the model, instead of filling the
memory: a process holds at most two parts, and a few frames of a third. What the model waits for is measured here, since
that says what bounds a run.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import torch

LOOK_AHEAD = 2  # frames of a part that are loaded before the model asks for them, for each loading thread
MAX_LOADERS = 8

WAIT_LOAD, WAIT_STORE = "wait_load", "wait_store"
"""Stages of the teach lane in which the model waits: for frames, and for the store lane."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopwatch:
    """Sums wall time and processor time per stage; a stage within a stage counts for itself only.

    Threads may share one.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.cpu_seconds: defaultdict[str, float] = defaultdict(float)
        self._sum = threading.Lock()
        self._within = threading.local()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the body's time under `name`."""
        outer: list[float] | None = getattr(self._within, "inner", None)
        inner = self._within.inner = [0.0, 0.0]  # wall and processor time of the stages within this one
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            wall_s, cpu_s = time.perf_counter() - wall_s, time.thread_time() - cpu_s
            self._within.inner = outer
            if outer is not None:
                outer[0] += wall_s
                outer[1] += cpu_s
            self.add(name, wall_s - inner[0], cpu_s - inner[1])

    def add(self, name: str, wall_s: float, cpu_s: float = 0.0) -> None:
        """Count time that was measured otherwise."""
        with self._sum:
            self.seconds[name] += wall_s
            self.cpu_seconds[name] += cpu_s


class Lanes:
    """The lanes of one process.

    Args:
        loaders: threads that load.
    """

    def __init__(self, loaders: int) -> None:
        # Every thread computes with one thread: a sum's order must not depend on how many cores there are.
        self._loading = ThreadPoolExecutor(loaders, "load", initializer=torch.set_num_threads, initargs=(1,))
        self.loaders = loaders
        self._teaching, self.storing = threading.Lock(), threading.Lock()
        self._idle_since = 0.0

    def load(self, function: Callable[[], Result]) -> Result:
        """Do something in the load lane, and wait for it."""
        return self._loading.submit(function).result()

    def load_ahead(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[Future[Result], None, None]:
        """Load items in their order, a few of them ahead; the first ones are begun at once. Close it to stop."""
        waiting = iter(items)
        begun: deque[Future[Result]] = deque()

        def begin() -> None:
            for item in waiting:
                begun.append(self._loading.submit(function, item))
                return

        def in_order() -> Generator[Future[Result], None, None]:
            try:
                while begun:
                    yield begun.popleft()
                    begin()
            finally:
                for future in begun:
                    future.cancel()

        for _ in range(LOOK_AHEAD * self.loaders):
            begin()
        return in_order()

    @contextmanager
    def teaching(self, watch: Stopwatch, since: float) -> Iterator[None]:
        """Have the teach lane for oneself.

        Args:
            watch: is told how long the lane was empty while this part was on its way.
            since: when work on the part began, by `time.perf_counter`.
        """
        with self._teaching:
            torch.set_num_threads(1)
            watch.add(WAIT_LOAD, time.perf_counter() - max(since, self._idle_since))
            try:
                yield
            finally:
                self._idle_since = time.perf_counter()


_making = threading.Lock()


def lanes() -> Lanes:
    """This process's lanes: one loading thread beside a model on the CPU, several where a GPU has the model."""
    with _making:
        return _lanes()


@lru_cache(maxsize=1)
def _lanes() -> Lanes:
    if not torch.cuda.is_available():
        return Lanes(1)
    return Lanes(max(1, min(MAX_LOADERS, len(os.sched_getaffinity(0)) // torch.cuda.device_count())))
