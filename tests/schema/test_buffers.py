"""Memory for chunks: nobody's bytes change under him, and what is free is bounded."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilda_schema.buffers import MAPPED_FROM, STEP_BYTES, Buffers

LARGE = 2 * STEP_BYTES


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@given(
    st.sampled_from(["float16", "int8", "<u4", "bool"]),
    st.lists(st.integers(1, 90), min_size=1, max_size=3).map(tuple),
)
def test_an_array_is_what_was_asked_for(dtype: str, shape: tuple[int, ...]) -> None:
    array = Buffers().empty(shape, dtype)
    assert array.shape == shape
    assert array.dtype == np.dtype(dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    if array.nbytes >= MAPPED_FROM:
        assert address(array) % 4096 == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 3)), max_size=40))
def test_arrays_in_use_never_share_memory_and_free_memory_is_bounded(steps: list[tuple[bool, int, int]]) -> None:
    buffers, held = Buffers(3 * LARGE), []
    for number, (taking, which, size) in enumerate(steps):
        if taking or not held:
            array = buffers.empty((size * LARGE,), np.uint8)
            array[:] = number
            held.append((number, array))
        else:
            held.pop(which % len(held))
            array = None
        assert buffers.free_bytes <= 3 * LARGE
        assert all((each == value).all() for value, each in held)


def views(array: np.ndarray) -> list[Any]:
    return [array[3:], array.reshape(2, -1).T, array.view(np.int8), memoryview(array), pa.py_buffer(array)]


@pytest.mark.parametrize("number", range(5))
def test_memory_comes_back_after_the_last_view_and_not_before(number: int) -> None:
    buffers = Buffers()
    array = buffers.empty((LARGE,), np.uint8)
    view, array = views(array)[number], None
    gc.collect()
    assert buffers.free_bytes == 0
    del view
    assert buffers.free_bytes == LARGE
    again = buffers.empty((LARGE - 5,), np.uint8)  # of about one size
    assert buffers.free_bytes == 0
    assert len(again) == LARGE - 5


def test_free_memory_of_other_sizes_makes_room() -> None:
    buffers = Buffers(2 * LARGE)
    first, second = buffers.empty((LARGE,), np.uint8), buffers.empty((2 * LARGE,), np.uint8)
    first = None
    second = None
    assert first is second is None
    assert buffers.free_bytes == 2 * LARGE
    buffers.empty((3 * LARGE,), np.uint8)
    assert buffers.free_bytes == 0  # neither the others nor itself: it is larger than what may be kept


def test_memory_that_there_is_not_is_the_error_that_numpy_raises() -> None:
    for size in (2**46, 2**70):
        with pytest.raises(MemoryError, match=r"\d+ bytes"):
            Buffers().empty((size,), np.uint8)


def test_threads_do_not_share_memory() -> None:
    buffers, wrong = Buffers(), []

    def work(value: int) -> None:
        for _ in range(300):
            array = buffers.empty((LARGE,), np.uint8)
            array[::4096] = value
            if not (array[::4096] == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def overwrite(buffers: Buffers, array: np.ndarray) -> None:
    array[:] = 7
    buffers.empty((LARGE,), np.uint8)[:] = 9


def test_a_forked_process_has_memory_of_its_own() -> None:
    buffers = Buffers()
    array, free = buffers.empty((LARGE,), np.uint8), buffers.empty((LARGE,), np.uint8)
    array[:], free[:] = 1, 2
    block = address(free)
    free = None
    child = multiprocessing.get_context("fork").Process(target=overwrite, args=(buffers, array))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert (array == 1).all()
    again = buffers.empty((LARGE,), np.uint8)
    assert address(again) == block
    assert (again == 2).all()  # nobody wrote there
