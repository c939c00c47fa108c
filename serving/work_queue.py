"""A bounded queue in front of a few threads: past the bound there is an error at once, not a longer wait."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import get_ident
from time import monotonic
from typing import Any

from runtime.errors import Unavailable


class WorkQueue:
    """Runs at most `threads` pieces of work at a time, and keeps at most `capacity` waiting.

    Its methods belong to one event loop; the work itself runs in the threads.
    """

    def __init__(self, threads: int, capacity: int) -> None:
        self.threads = threads
        self.capacity = capacity
        self._pool = ThreadPoolExecutor(threads, "work")
        self._pending: set[Future] = set()
        self._began: dict[int, float] = {}  # by thread, monotonic seconds

    @property
    def pending(self) -> int:
        """How many pieces of work wait or are being worked on."""
        return len(self._pending)

    @property
    def running(self) -> int:
        """How many pieces of work are being worked on."""
        return len(self._began)

    @property
    def queued(self) -> int:
        """How many wait."""
        return max(0, self.pending - self.running)

    @property
    def longest_running_s(self) -> float:
        """For how many seconds the oldest piece of work has been worked on; 0 where there is none."""
        return max((monotonic() - began for began in list(self._began.values())), default=0.0)

    def require_room(self) -> None:
        """Raise Unavailable where one more piece of work could not even wait."""
        if self.pending >= self.threads + self.capacity:
            raise Unavailable(f"{self.capacity} calls are waiting already" if self.capacity else "all threads are busy")

    async def run(self, work: Callable, *arguments: Any) -> tuple[Any, float]:
        """Return what `work(*arguments)` returns in a thread, and the seconds that it waited for the thread.

        Raises Unavailable, or what the work raises. Where the caller is cancelled while it waits, its place is free at
        once.
        """
        self.require_room()
        job = [work, arguments]
        future = self._pool.submit(self._work, monotonic(), job)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.cancelled():
                job.clear()  # the pool keeps it until a thread is free, and it may be large
            del future, job  # an error's traceback has this frame: with these in it, neither would be freed

    def _work(self, submitted: float, job: list) -> tuple[Any, float]:
        began = self._began[get_ident()] = monotonic()
        try:
            work, arguments = job
            return work(*arguments), began - submitted
        finally:
            del self._began[get_ident()]
