"""A bounded queue in front of a few threads: past the bound there is an error at once, not a longer wait.

Knows nothing of HTTP or of pictures.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread, get_ident
from time import monotonic, perf_counter
from typing import Any

# Seconds for which answers are kept while calls wait, to be handed over together: what the event loop needs for that
# has left the CPU's caches after every run of a model, and is brought back once for all of them. At 0 none is kept.
TOGETHER_S = 0.02


class QueueFull(Exception):
    """As many pieces of work as may wait are waiting."""


@dataclass(frozen=True)
class Done:
    """What a piece of work returned, and the seconds that it waited before it began."""

    result: Any
    queued_s: float


@dataclass
class _Job:
    todo: list[tuple[Callable, tuple]]  # one piece of work; whoever takes it out has it: a thread, or a caller who goes
    submitted: float  # perf_counter seconds
    answer: asyncio.Future


class WorkQueue:
    """Runs at most `threads` pieces of work at a time, and keeps at most `capacity` waiting.

    Its methods belong to one event loop; the work itself runs in the threads.
    """

    def __init__(self, threads: int, capacity: int) -> None:
        self.threads = threads
        self.capacity = capacity
        self.pending = 0  # waiting, in work, and done but not handed over
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._began: dict[int, float] = {}  # by thread, monotonic seconds
        self._done: deque[tuple[asyncio.Future, Done | None, BaseException | None]] = deque()  # not handed over
        self._keeping = False
        for number in range(threads):
            Thread(target=self._work_forever, name=f"work {number}", daemon=True).start()

    @property
    def in_work(self) -> int:
        """How many pieces of work are being worked on."""
        return len(self._began)

    @property
    def queued(self) -> int:
        """How many wait."""
        return max(0, self.pending - self.in_work - len(self._done))

    @property
    def longest_s(self) -> float:
        """For how many seconds the oldest piece of work has been worked on; 0 where there is none."""
        return max((monotonic() - began for began in list(self._began.values())), default=0.0)

    def require_room(self) -> None:
        """Raise QueueFull where one more piece of work could not even wait."""
        if self.pending - len(self._done) >= self.threads + self.capacity:
            raise QueueFull(f"{self.capacity} calls are waiting already")

    async def run(self, work: Callable, *arguments: Any) -> Done:
        """Return what `work(*arguments)` returns in a thread. Raises QueueFull, or what the work raises.

        Where the caller is cancelled while it waits, its place is free at once.
        """
        self.require_room()
        self.pending += 1
        job = _Job([(work, arguments)], perf_counter(), asyncio.get_running_loop().create_future())
        self._jobs.put(job)
        try:
            return await job.answer
        except asyncio.CancelledError:
            self._withdraw(job)
            raise
        finally:
            del job  # whose error, if it has one, has a traceback with this frame: neither would be freed

    def _withdraw(self, job: _Job) -> None:
        with suppress(IndexError):  # a thread is at it, or has done it
            job.todo.pop()
            self.pending -= 1

    def _work_forever(self) -> None:
        while True:
            self._work(self._jobs.get())

    def _work(self, job: _Job) -> None:
        try:
            work, arguments = job.todo.pop()
        except IndexError:
            return  # its caller has gone
        queued_s = perf_counter() - job.submitted
        self._began[get_ident()] = monotonic()
        done = error = None
        try:
            done = Done(work(*arguments), queued_s)
        except BaseException as raised:  # whatever it is, it is the caller's
            error = raised
        self._done.append((job.answer, done, error))
        del self._began[get_ident()]
        if not self._keeping or not self.queued:
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                job.answer.get_loop().call_soon_threadsafe(self._hand_over)
        del job, error  # as in `run`

    def _hand_over(self) -> None:
        if self._done and self.queued and not self._keeping:
            self._keeping = True
            asyncio.get_running_loop().call_later(TOGETHER_S, self._keep_no_longer)
        while self._done:
            answer, done, error = self._done.popleft()
            self.pending -= 1
            if answer.cancelled():
                continue
            if error is None:
                answer.set_result(done)
            else:
                answer.set_exception(error)

    def _keep_no_longer(self) -> None:
        self._keeping = False
        self._hand_over()
