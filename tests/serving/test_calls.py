"""calls.py: the body of a refused request is released before the response."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from runtime.errors import InvalidInput, Unavailable
from serving.calls import handle
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


@pytest.mark.parametrize("kind", [InvalidInput, Unavailable, RuntimeError])
def test_releases_the_body_of_a_refused_request(kind):
    def refuse(body: Body) -> None:
        raise kind("why") from ValueError("the cause")

    async def test() -> None:
        lifecycle = SimpleNamespace(require_ready=lambda: None, is_stopping=False)
        ctx = SimpleNamespace(lifecycle=lifecycle, queue=WorkQueue(1, 0), bodies=Bodies())
        request = SimpleNamespace(app=SimpleNamespace(ctx=ctx), headers={}, ctx=SimpleNamespace(), method="POST")
        request.path, request.route = "/", None
        try:
            await handle(request, refuse)
        except kind as error:
            await respond_to_error(request, error)
            while ctx.bodies.watched() is not None:  # the thread lets go of it a moment later
                await asyncio.sleep(0.001)
            assert str(error) == "why"
        else:
            raise AssertionError("it was not refused")

    gc.disable()
    try:
        asyncio.run(asyncio.wait_for(test(), DEADLINE_S))
    finally:
        gc.enable()
