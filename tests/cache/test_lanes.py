"""A worker's lanes: in order, a few frames ahead, one part at a time; and its stopwatch counts nothing twice."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hilda_cache.lanes import LOOK_AHEAD, WAIT_LOAD, Lanes, Stopwatch


@pytest.mark.parametrize("loaders", [1, 3])
def test_items_come_in_order_and_few_are_loaded_ahead(loaders: int) -> None:
    begun, taken = [], []
    loading = Lanes(loaders).load_ahead(lambda item: (begun.append(item), item)[1], range(20))
    for future in loading:
        taken.append(future.result())
        assert len(begun) <= len(taken) + LOOK_AHEAD * loaders
    assert taken == list(range(20))
    assert sorted(begun) == taken


def test_what_is_not_wanted_any_more_is_not_loaded() -> None:
    begun: list[int] = []
    free = threading.Event()

    def load(item: int) -> int:
        begun.append(item)
        assert free.wait(60)
        if item == 0:
            raise ValueError("damaged")
        return item

    lane = Lanes(1)
    loading = lane.load_ahead(load, range(20))
    free.set()
    with pytest.raises(ValueError, match="damaged"):
        [future.result() for future in loading]
    loading.close()
    lane.load(lambda: None)  # behind everything that was begun
    assert len(begun) <= 1 + LOOK_AHEAD


def test_one_part_is_taught_at_a_time() -> None:
    lane, watch, inside = Lanes(1), Stopwatch(), []

    def part(_: int) -> int:
        with lane.teaching(watch, time.perf_counter()):
            inside.append(1)
            most = len(inside)
            time.sleep(0.01)
            inside.pop()
        return most

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(part, range(8))) == [1] * 8


def test_a_model_waits_for_a_part_only_while_none_is_taught() -> None:
    lane = Lanes(1)
    first, second = Stopwatch(), Stopwatch()
    since = time.perf_counter()
    time.sleep(0.05)  # the first part is prepared, and nothing else is there to do
    with lane.teaching(first, since):
        time.sleep(0.05)  # the second one is prepared meanwhile
    with lane.teaching(second, since):
        pass
    assert first.seconds[WAIT_LOAD] >= 0.05
    assert second.seconds[WAIT_LOAD] < first.seconds[WAIT_LOAD]


def test_a_stage_within_a_stage_counts_for_itself_only() -> None:
    watch = Stopwatch()
    began = time.perf_counter()
    with watch.stage("write"):
        for _ in range(3):
            with watch.stage("encode"):
                time.sleep(0.01)
    whole = time.perf_counter() - began
    assert watch.seconds["encode"] >= 0.03
    assert sum(watch.seconds.values()) <= whole
    assert watch.cpu_seconds["encode"] < watch.seconds["encode"]  # it slept


def test_threads_may_share_a_stopwatch() -> None:
    watch = Stopwatch()

    def work(_: int) -> None:
        with watch.stage("decode"):
            time.sleep(0.01)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert watch.seconds["decode"] >= 0.4
