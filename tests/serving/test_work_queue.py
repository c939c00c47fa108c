"""work_queue.py: work is bounded, cancellable while it waits, and counted."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine

import pytest

from runtime.errors import Unavailable
from serving.work_queue import WorkQueue
from tests.server_process import DEADLINE_S


class Gate:
    """Work that ends when the test allows it."""

    def __init__(self) -> None:
        self.began: list = []
        self.open = threading.Event()

    def pass_through(self, what: object = None) -> object:
        """Return `what`, once the gate is open."""
        self.began.append(what)
        assert self.open.wait(DEADLINE_S)
        return what


class Body:
    """Stands for a large body; unlike bytes it can be watched."""


def run(test: Callable[[Gate], Coroutine]) -> None:
    """Run the test in an event loop; release every thread from its gate at the end."""
    gate = Gate()

    async def bounded() -> None:
        try:
            await asyncio.wait_for(test(gate), DEADLINE_S)
        finally:
            gate.open.set()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds; `run` fails the test if it never does."""
    while not condition():
        await asyncio.sleep(0.001)


def counts(queue: WorkQueue) -> tuple[int, int]:
    """Return how many pieces of work are running and waiting."""
    return len(queue.running), len(queue.pending) - len(queue.running)


def start(queue: WorkQueue, gate: Gate, *names: object) -> list[asyncio.Task]:
    """Queue a piece of work for each name."""
    return [asyncio.create_task(queue.run(gate.pass_through, name)) for name in names]


def test_runs_work_in_a_thread():
    async def test(gate):
        work = WorkQueue(1, 0).run(lambda a, b: (a + b, threading.current_thread()), 1, 2)
        (total, thread), queued_s = await work
        assert total == 3
        assert thread is not threading.current_thread()
        assert queued_s >= 0

    run(test)


@pytest.mark.parametrize(("threads", "capacity"), [(1, 0), (1, 2), (3, 2)])
def test_refuses_work_when_it_is_full(threads, capacity):
    async def test(gate):
        queue = WorkQueue(threads, capacity)
        tasks = start(queue, gate, *range(threads + capacity))
        await until(lambda: counts(queue) == (threads, capacity))
        with pytest.raises(Unavailable, match=f"busy, and {capacity} requests"):
            queue.require_room()
        with pytest.raises(Unavailable):
            await queue.run(gate.pass_through)
        assert len(queue.pending) == threads + capacity
        gate.open.set()
        assert [result for result, _ in await asyncio.gather(*tasks)] == list(range(threads + capacity))
        await until(lambda: not queue.pending)
        assert counts(queue) == (0, 0)
        queue.require_room()

    run(test)


def test_runs_work_in_order_and_reports_the_wait():
    async def test(gate):
        queue = WorkQueue(1, 9)
        tasks = start(queue, gate, *range(10))
        await until(lambda: counts(queue) == (1, 9))
        since = queue.longest_running_s
        await until(lambda: queue.longest_running_s > since + 0.02)
        gate.open.set()
        waited = [queued_s for _, queued_s in await asyncio.gather(*tasks)]
        assert gate.began == list(range(10))
        assert min(waited[1:]) > 0.02

    run(test)


def test_frees_the_place_of_a_cancelled_caller():
    async def test(gate):
        queue = WorkQueue(1, 2)
        first, *waiting = start(queue, gate, "first", "second", "third")
        await until(lambda: counts(queue) == (1, 2))
        waiting[0].cancel()
        await asyncio.gather(*waiting[:1], return_exceptions=True)
        assert counts(queue) == (1, 1)
        [fourth] = start(queue, gate, "fourth")
        await until(lambda: counts(queue) == (1, 2))
        gate.open.set()
        await asyncio.gather(first, waiting[1], fourth)
        assert gate.began == ["first", "third", "fourth"]
        await until(lambda: not queue.pending)

    run(test)


def test_frees_the_arguments_of_a_cancelled_caller():
    async def test(gate):
        queue = WorkQueue(1, 1)
        [first] = start(queue, gate, "first")
        await until(lambda: len(queue.running) == 1)
        body = Body()
        watched = weakref.ref(body)
        [second] = start(queue, gate, body)
        del body
        await until(lambda: counts(queue) == (1, 1))
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        del second
        await until(lambda: gc.collect() >= 0 and watched() is None)
        assert len(queue.running) == 1
        gate.open.set()
        await first

    run(test)


def test_running_work_keeps_its_place_after_a_cancellation():
    async def test(gate):
        queue = WorkQueue(1, 0)
        [task] = start(queue, gate, "first")
        await until(lambda: len(queue.running) == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(Unavailable):
            queue.require_room()
        gate.open.set()
        await until(lambda: not queue.pending)

    run(test)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyError("no"), Unavailable("of another")])
def test_an_error_reaches_the_caller_and_frees_the_place(error):
    def work() -> None:
        raise error

    async def test(gate):
        queue = WorkQueue(1, 0)
        with pytest.raises(type(error)) as raised:
            await queue.run(work)
        assert raised.value is error
        await until(lambda: not queue.pending)
        assert (*counts(queue), queue.longest_running_s) == (0, 0, 0)
        assert (await queue.run(int, "7"))[0] == 7

    run(test)


def test_reports_the_age_of_the_oldest_work():
    async def test(gate):
        queue = WorkQueue(2, 1)
        assert queue.longest_running_s == 0
        tasks = start(queue, gate, "first")
        await until(lambda: queue.longest_running_s > 0.05)
        tasks += start(queue, gate, "second", "third")
        await until(lambda: counts(queue) == (2, 1))
        assert queue.longest_running_s > 0.05
        gate.open.set()
        await asyncio.gather(*tasks)
        await until(lambda: queue.longest_running_s == 0)

    run(test)
