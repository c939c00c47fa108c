"""Return to the system what is no longer needed, which glibc would rather keep.

Where there is another libc, neither does anything.
"""

import ctypes

# As malloc.h has them. The first is set too, as setting the second has glibc forget how it would choose it.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE = 2_000_000  # bytes; the pictures of most calls are smaller, and are not worth a system call each
KEPT = 8_000_000  # bytes that may lie free at the end of a thread's heap

_libc = ctypes.CDLL(None)


def return_large() -> None:
    """From now on return what a large picture took as soon as it is done with.

    Left to itself glibc keeps up to 32 MB in every thread once there has been a picture of that size (mallopt(3)).
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        _libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def return_all() -> None:
    """Return what is free now: opening a session leaves about twice the size of its weights behind."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
