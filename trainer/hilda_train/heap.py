"""Keeps what a step on a CPU frees from adding up to gigabytes that nothing uses.

Sweeps differ in size, so every step asks for tensors of other sizes than the last, and the C library keeps what the old
ones left for requests that fit. Between two steps of the demo 180 MB are in use; after a hundred steps the process held
3.7 GB, and what is given back is soon taken again, since new tensors spread over the old holes. Tensors mapped one by
one leave no holes, but their pages have to be made anew each time, a fifth of the demo's step. So that is done only
once the holes are large.
"""

from __future__ import annotations

import ctypes
import sys

HOLES_MAX = 3 << 29  # bytes
MAPPED = 16 << 20  # bytes from which a tensor is then mapped by itself
M_MMAP_THRESHOLD = -3


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`, in bytes; `fordblks` is free and still held."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


class Heap:
    """The C library's heap, watched from step to step. Does nothing where it is not glibc's (2.33 or later).

    Args:
        holes_max: bytes that may be free and held.
    """

    def __init__(self, holes_max: int = HOLES_MAX) -> None:
        self._libc = _glibc()
        self._holes_max = holes_max
        self.bounded = False

    def step_done(self) -> None:
        """Look at the heap between two steps, and bound it if its holes have grown too large."""
        if self._libc is None or self.bounded:
            return
        if self._libc.mallinfo2().fordblks > self._holes_max:
            self._libc.mallopt(M_MMAP_THRESHOLD, MAPPED)
            self._libc.malloc_trim(0)
            self.bounded = True


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallinfo2") and hasattr(libc, "malloc_trim")):
        return None
    libc.mallinfo2.restype = _MallInfo
    return libc
