"""The C library's allocator, told to keep the memory of tensors that are freed.

A training step frees and allocates the same large tensors again and again. glibc gives blocks above
32 MiB, and the free end of its heap, back to the system, which clears every page before it hands it
out anew: for a third of the time of a small network at 64×64 with a batch of 64.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Values of glibc's malloc.h."""

TOP_PAD = 2**28
"""Bytes that the heap grows by at least."""

OTHERS_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""How the names of environment variables begin that choose or set an allocator."""


def keep_freed_memory() -> bool:
    """Keep what this process frees for what it allocates next.

    Nothing is changed where the environment sets the allocator, or where the C library is not
    glibc.

    Returns:
        Whether it is kept.
    """
    library = _glibc()
    if library is None or any(name.startswith(OTHERS_SETTINGS) for name in os.environ):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD))
    return all(library.mallopt(name, value) == 1 for name, value in settings)


def release_freed_memory() -> None:
    """Give back to the system what is free now; where the C library is not glibc, nothing."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
