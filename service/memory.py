"""Memory of models that are served no longer goes back to the system: glibc would keep much of it.

Left alone, glibc takes the first large block that is freed as a sign that such blocks come and go, and from then on
carves them out of its arenas; of an arena's last free block, up to twice that size, it gives nothing back. After some
swaps that is the size of a model or two.
"""

import contextlib
import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**20


def return_large_blocks() -> None:
    """From now on, blocks of 1 MB and more are the system's own and go back to it when they are freed."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE)


def trim() -> None:
    """Give back the small blocks that are free now."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
