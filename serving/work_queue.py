"""A bounded queue in front of a few threads: when it is full, the next piece of work is refused at once."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import get_ident
from time import monotonic
from typing import Any

from runtime.errors import Unavailable


class WorkQueue:
    """Runs at most `threads` pieces of work at a time, and keeps at most `capacity` waiting.

    Its methods must be called in one event loop; the work itself runs in the threads.
    """

    def __init__(self, threads: int, capacity: int) -> None:
        self.threads = threads
        self.capacity = capacity
        self.finished = 0  # pieces of work, including those whose callers gave up
        self.last_change = monotonic()  # when a piece of work was last submitted or finished
        self.pending: set[Future] = set()  # pieces of work that are waiting or running
        self.running: dict[int, float] = {}  # when each that is running began, monotonic seconds; by thread
        self._pool = ThreadPoolExecutor(threads, "work")

    @property
    def longest_running_s(self) -> float:
        """The seconds for which the oldest piece of work has been running; 0 if none is."""
        return max((monotonic() - began for began in list(self.running.values())), default=0.0)

    def require_room(self) -> None:
        """Raise Unavailable if another piece of work could not even wait."""
        if len(self.pending) >= self.threads + self.capacity:
            raise Unavailable(f"all threads are busy, and {self.capacity} requests are waiting")

    async def run(self, work: Callable, *arguments: Any) -> tuple[Any, float]:
        """Return what `work(*arguments)` returns in a thread, and the seconds for which it waited for the thread.

        If the caller is cancelled while it waits, its place is free at once. Raises Unavailable, or what `work` raises.
        """
        self.require_room()
        job = [work, arguments]
        future = self._pool.submit(self._work, monotonic(), job)
        self.pending.add(future)
        future.add_done_callback(self.pending.discard)
        self.last_change = monotonic()
        try:
            return await asyncio.wrap_future(future)
        finally:
            self.finished += 1
            self.last_change = monotonic()
            if future.cancelled():
                job.clear()  # the pool keeps it until a thread is free, and its arguments may be large

    def _work(self, submitted: float, job: list) -> tuple[Any, float]:
        began = self.running[get_ident()] = monotonic()
        try:
            work, arguments = job
            return work(*arguments), began - submitted
        finally:
            del self.running[get_ident()]
