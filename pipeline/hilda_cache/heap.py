"""What a worker does with memory that it has freed: the next frame uses it, and after each part it goes back.

By default the C library gives blocks of a tensor's size back to the system when they are freed, and the next layer pays
for making their pages anew: up to a third of a vision transformer's time in bfloat16. Kept for good, on the other hand,
they leave a worker a little larger after each part.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # as malloc.h has them
KEPT = 1 << 30  # bytes at the heap's end that are not given back by themselves
MAPPED = 32 << 20  # bytes from which a tensor is mapped by itself; the library takes no more


def keep_freed_memory() -> None:
    """From now on, let all threads use again what any of them has freed."""
    if (libc := _glibc()) is not None:
        for option, value in ((M_TRIM_THRESHOLD, KEPT), (M_MMAP_THRESHOLD, MAPPED), (M_ARENA_MAX, 1)):
            libc.mallopt(option, value)


def give_back_freed_memory() -> None:
    """Give what is free back to the system."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
