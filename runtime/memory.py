"""Return to the system what is no longer needed, which glibc would rather keep. Another libc is left alone."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them; both are set, as the second resets the first
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def configure_malloc() -> None:
    """From now on return what a large image took as soon as it is done with, else up to 32 MB stay in every thread."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(M_MMAP_THRESHOLD, 2_000_000)  # bytes; most images are smaller, and not worth a system call each
        _libc.mallopt(M_TRIM_THRESHOLD, 8_000_000)  # bytes that may lie free at the end of a thread's heap


def trim_heap() -> None:
    """Return what is free now: opening a model leaves about twice the size of its weights behind."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
