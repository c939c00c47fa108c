"""A bounded queue in front of a few threads: past the bound there is an error at once, not a longer wait.

    python -c "import asyncio, workers; print(asyncio.run(workers.WorkQueue(2, 8).run(sum, [1, 2])))"

Knows nothing of HTTP or of pictures.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import get_ident
from time import monotonic, perf_counter
from typing import Any


class QueueFull(Exception):
    """As many pieces of work as may wait are waiting."""


@dataclass(frozen=True)
class Done:
    """What a piece of work returned, and the seconds that it waited before it began."""

    result: Any
    queued_s: float


class WorkQueue:
    """Runs at most `threads` pieces of work at a time, and keeps at most `capacity` waiting.

    Its methods belong to one event loop; the work itself runs in the threads.
    """

    def __init__(self, threads: int, capacity: int) -> None:
        self.threads = threads
        self.capacity = capacity
        self.pending = 0  # in work and waiting
        self._pool = ThreadPoolExecutor(threads, "work")
        self._began: dict[int, float] = {}  # by thread, monotonic seconds

    @property
    def in_work(self) -> int:
        """How many pieces of work are being worked on."""
        return len(self._began)

    @property
    def queued(self) -> int:
        """How many wait."""
        return max(0, self.pending - self.in_work)

    @property
    def longest_s(self) -> float:
        """For how many seconds the oldest piece of work has been worked on; 0 where there is none."""
        return max((monotonic() - began for began in list(self._began.values())), default=0.0)

    def require_room(self) -> None:
        """Raise QueueFull where one more piece of work could not even wait."""
        if self.pending >= self.threads + self.capacity:
            raise QueueFull(f"{self.capacity} calls are waiting already")

    async def run(self, work: Callable, *arguments: Any) -> Done:
        """Return what `work(*arguments)` returns in a thread. Raises QueueFull, or what the work raises.

        Where the caller is cancelled while it waits, its place is free at once.
        """
        self.require_room()
        self.pending += 1
        job = [work, arguments]
        future = self._pool.submit(self._work, perf_counter(), job)
        waiting = asyncio.wrap_future(future)
        waiting.add_done_callback(lambda _: self._leave(future, job))
        return await waiting

    def _work(self, submitted: float, job: list) -> Done:
        work, arguments = job
        queued_s = perf_counter() - submitted
        self._began[get_ident()] = monotonic()
        try:
            return Done(work(*arguments), queued_s)
        finally:
            del self._began[get_ident()]

    def _leave(self, future: Future, job: list) -> None:
        if future.cancelled():
            job.clear()  # the pool keeps it until a thread is free, and it may be large
        if future.done():
            self._count_down()
        else:  # the caller has gone, and a thread is at its work
            loop = asyncio.get_running_loop()
            future.add_done_callback(lambda future: loop.call_soon_threadsafe(self._count_down))

    def _count_down(self) -> None:
        self.pending -= 1
