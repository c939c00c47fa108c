"""The CPU time that a request may spend on its images."""

from time import thread_time

from runtime.errors import InvalidInput

MAX_CPU_S = 2.0  # a single image takes more than 1 s only if it was made to


class CpuBudget:
    """MAX_CPU_S from now, of this thread's CPU time and of the processes that decode for it."""

    def __init__(self) -> None:
        self._end = thread_time() + MAX_CPU_S

    def spend(self, seconds: float = 0.0) -> float:
        """Count `seconds` that a process has used; return those that are left. Raises InvalidInput if none are."""
        self._end -= seconds
        left = self._end - thread_time()
        if left < 0:
            raise InvalidInput(f"decoding takes over {MAX_CPU_S:g} s: send fewer or smaller images")
        return left
