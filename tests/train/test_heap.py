"""Holes in the heap are given back once they are large, and not before."""

import subprocess
import sys

import pytest

from hilda_train.heap import Heap

# Blocks of 20 MB with a small one between them: once the large ones are freed, the heap is full of holes.
HOLES = """
import ctypes, sys
from hilda_train.heap import Heap

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

def holes(number):
    large, small = [], []
    for _ in range(number):
        large.append(libc.malloc(20 << 20))
        libc.memset(large[-1], 1, 20 << 20)
        small.append(libc.malloc(500_000))  # too large for a gap left by something else
    for block in large:
        libc.free(block)

heap = Heap(holes_max=int(sys.argv[1]) << 20)
holes(10)
held = resident_mb()
heap.step_done()
trimmed = resident_mb()
holes(20)
print(int(heap.bounded), held, trimmed, resident_mb())
"""


@pytest.mark.skipif(Heap()._libc is None, reason="not glibc 2.33 or later")
@pytest.mark.parametrize(("holes_max_mb", "bounded"), [(100, 1), (500, 0)])
def test_large_holes_are_given_back_and_do_not_come_again(holes_max_mb, bounded):
    done = subprocess.run([sys.executable, "-c", HOLES, str(holes_max_mb)], capture_output=True, text=True, check=True)
    was_bounded, held, trimmed, after = map(int, done.stdout.split())
    assert was_bounded == bounded
    assert held > 200
    if bounded:
        assert trimmed < held - 150
        assert after < held, "what does not fit into the old holes leaves no new ones"
    else:
        assert trimmed >= held
        assert after >= held


KEPT = """
import resource, sys
import torch
from hilda_train.heap import Heap

torch.set_num_threads(1)
heap = Heap() if sys.argv[1] == "watched" else None
def step():
    a = torch.ones(3_000_000)
    b = a + 1
    return float((a * b).sum())
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(Heap()._libc is None, reason="not glibc 2.33 or later")
def test_what_a_step_freed_serves_the_next_one():
    """Pages made anew over sixty steps that ask for 36 MB each."""
    faults = {}
    for how in ("watched", "not"):
        done = subprocess.run([sys.executable, "-c", KEPT, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert 4 * faults["watched"] < faults["not"]


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    heap = Heap(holes_max=0)
    heap.step_done()
    assert not heap.bounded
