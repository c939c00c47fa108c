"""calls.py: what a refused request holds is released, and large bodies are decoded one at a time."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from runtime.errors import InvalidInput, Unavailable
from serving.calls import handle
from serving.lifecycle import State
from serving.middleware import respond_to_error
from serving.work_queue import WorkQueue
from tests.server_process import DEADLINE_S


class Body:
    """Stands for a large body; unlike bytes it can be watched."""

    def __len__(self) -> int:
        return 2_000_000


class Bodies:
    """Gives one body."""

    @asynccontextmanager
    async def read(self, request: object) -> AsyncIterator[Body]:
        """Give it."""
        body = Body()
        self.watched = weakref.ref(body)
        yield body


def requests_to(threads: int, capacity: int = 0) -> Iterator[SimpleNamespace]:
    """Give requests to one server, whose backend returns its inputs."""
    lifecycle = SimpleNamespace(require_ready=lambda: None, state=State.READY)
    ctx = SimpleNamespace(lifecycle=lifecycle, queue=WorkQueue(threads, capacity), bodies=Bodies())
    ctx.backend = SimpleNamespace(inference=dict)
    while True:
        request = SimpleNamespace(app=SimpleNamespace(ctx=ctx), headers={}, ctx=SimpleNamespace(), method="POST")
        request.path, request.route = "/", None
        yield request


def run(test: Callable[[], Coroutine]) -> None:
    """Run the test in an event loop, and without the garbage collector, which frees what is in a cycle."""
    gc.disable()
    try:
        asyncio.run(asyncio.wait_for(test(), DEADLINE_S))
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [InvalidInput, Unavailable, RuntimeError])
def test_releases_the_body_of_a_refused_request(kind):
    def refuse(body: Body) -> None:
        raise kind("why") from ValueError("the cause")

    async def test() -> None:
        request = next(requests_to(threads=1))
        try:
            await handle(request, refuse)
        except kind as error:
            await respond_to_error(request, error)
            while request.app.ctx.bodies.watched() is not None:  # the thread lets go of it a moment later
                await asyncio.sleep(0.001)
            assert str(error) == "why"
        else:
            raise AssertionError("it was not refused")

    run(test)


def test_decodes_large_bodies_one_at_a_time():
    made: list[weakref.ref] = []

    def refuse(body: Body) -> None:
        assert all(earlier() is None for earlier in made)
        local = Body()
        made.append(weakref.ref(local))
        time.sleep(0.1)  # the other body's thread begins meanwhile, if it may
        raise InvalidInput("why")

    async def test() -> None:
        requests = requests_to(threads=2)
        calls = [handle(next(requests), refuse) for _ in range(2)]
        assert [type(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == [InvalidInput] * 2

    run(test)


def test_a_request_is_queued_until_its_thread_begins():
    gate = threading.Event()

    async def test() -> None:
        requests = requests_to(threads=1, capacity=1)
        first, second = next(requests), next(requests)
        calls = [
            asyncio.create_task(handle(first, lambda body: ({"passed": gate.wait(DEADLINE_S)}, dict))),
            asyncio.create_task(handle(second, lambda body: ({"queued": second.ctx.is_queued}, dict))),
        ]
        while not getattr(second.ctx, "is_queued", False):
            await asyncio.sleep(0.001)
        assert not first.ctx.is_queued
        gate.set()
        assert await asyncio.gather(*calls) == [{"passed": True}, {"queued": False}]

    run(test)
