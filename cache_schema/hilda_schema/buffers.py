"""Memory that chunks are read into: on whole pages, and used again.

Two things cost more than the bytes themselves when megabytes are read into a new array. The C library gives a large
block back to the system when it is freed, so that the next read pays a page fault for every 4 kB. And the kernel
copies at a fraction of its speed to an address that does not begin a cache line, as `numpy.empty` never does. So large
arrays lie on pages of their own, and pages whose last array is gone serve the next one.
"""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MAPPED_FROM = 2**17  # bytes; smaller arrays the C library keeps by itself
STEP_BYTES = 2**18  # sizes are rounded up to it, so that sweeps of about one size share blocks
KEPT_BYTES = 2**26
"""Free memory that a process keeps: some seven nuScenes frames of four layers."""


class _Use(weakref.ref[NDArray[np.uint8]]):
    """An array on a block; numpy's arrays take no part in garbage collection, so none is seen after its end."""

    __slots__ = ("block",)
    block: mmap.mmap


class Buffers:
    """A process's memory for arrays. Threads may share it; there is no lock that a fork could leave held.

    Args:
        kept_bytes: most that is kept while no array uses it.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._free: dict[int, list[mmap.mmap]] = {}  # size -> blocks
        self._uses: dict[int, _Use] = {}  # a reference that is not kept tells nobody

    @property
    def free_bytes(self) -> int:
        """What is kept and not in use."""
        return sum(size * len(blocks) for size, blocks in list(self._free.items()))

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A contiguous array of that shape, any content; its memory comes back when no view or buffer of it is left."""
        dtype = np.dtype(dtype)
        size = prod(shape) * dtype.itemsize
        if size < MAPPED_FROM:
            return np.empty(shape, dtype)
        rounded = -(-size // STEP_BYTES) * STEP_BYTES
        try:
            block = self._free[rounded].pop()
        except (KeyError, IndexError):
            block = _mapped(rounded)
        # Every view has this array as its base: numpy looks through no array whose memory is not an array's.
        whole = np.frombuffer(block, np.uint8)
        use = _Use(whole, self._take_back)
        use.block = block
        self._uses[id(use)] = use
        return whole[:size].view(dtype).reshape(shape)

    def _take_back(self, use: _Use) -> None:
        del self._uses[id(use)]
        block, size = use.block, len(use.block)
        if self.free_bytes + size > self._kept_bytes:
            for other in [each for each in list(self._free) if each != size]:
                self._free.pop(other, None)  # blocks of a size that is not read now
        if self.free_bytes + size <= self._kept_bytes:
            self._free.setdefault(size, []).append(block)


def _mapped(size: int) -> mmap.mmap:
    """New pages, private to the process also after a fork; large ones where the system has them."""
    try:
        block = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{size} bytes for an array") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


BUFFERS = Buffers()
