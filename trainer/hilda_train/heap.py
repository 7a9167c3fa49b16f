"""How a training process on a CPU holds its memory: what a step frees serves the next one, up to a limit.

By default the C library gives large blocks back to the system as soon as they are freed, and the next layer pays for
making their pages anew: 7 % of a MinkUNet34's step. So freed memory is kept. But sweeps differ in size, so every step
asks for tensors of other sizes than the last, and new ones spread over the holes that old ones left: between two steps
of the demo 180 MB are in use, and after a hundred steps the process held 3.7 GB. So once the holes are large they are
given back, and from then on large tensors are mapped one by one, which leaves no holes and costs a fifth of the step.
"""

from __future__ import annotations

import ctypes
import sys

HOLES_MAX = 3 << 29  # bytes
KEPT = 1 << 30  # bytes at the heap's end that are not given back
MAPPED = 30 << 20  # bytes from which a tensor is mapped by itself; the library takes no more than 32 MB
MAPPED_LATER = 16 << 20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


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
        if self._libc is not None:
            self._libc.mallopt(M_TRIM_THRESHOLD, KEPT)
            self._libc.mallopt(M_MMAP_THRESHOLD, MAPPED)

    def step_done(self) -> None:
        """Look at the heap between two steps, and bound it if its holes have grown too large."""
        if self._libc is None or self.bounded:
            return
        if self._libc.mallinfo2().fordblks > self._holes_max:
            self._libc.mallopt(M_MMAP_THRESHOLD, MAPPED_LATER)
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
