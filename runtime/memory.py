"""Return freed memory to the system, which glibc would keep. Other C libraries are left alone."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h; both are set: after one, glibc adjusts neither
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def configure_malloc() -> None:
    """Return the memory of large images as soon as they are freed; otherwise each thread may keep 32 MB."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(M_MMAP_THRESHOLD, 2_000_000)  # bytes; most images are smaller, and not worth a system call
        _libc.mallopt(M_TRIM_THRESHOLD, 8_000_000)  # free bytes at the end of a thread's heap


def trim_heap() -> None:
    """Return what is free now: opening a model leaves about twice the size of its weights."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
