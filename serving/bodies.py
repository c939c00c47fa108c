"""Reading a request's body in bounded time and memory."""

import asyncio
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sanic import Request
from sanic.exceptions import PayloadTooLarge, RequestTimeout

from runtime.errors import Unavailable

BODIES_IN_MEMORY = 4  # of the largest size, over all connections; what is made of a body is up to twice as large
LARGE = 1_000_000  # bytes of a body


class BodyReader:
    """Reads bodies of at most `limit` bytes, and of BODIES_IN_MEMORY times that over all connections."""

    def __init__(self, limit: int, timeout_s: float) -> None:
        self.limit = limit
        self.timeout_s = timeout_s
        self.held = 0  # bytes, over all connections

    async def read(self, request: Request) -> bytes:
        """Return the body; `release` it afterwards.

        Raises PayloadTooLarge, before a byte is read where the header gives the length, RequestTimeout, or Unavailable
        where the bodies of all connections are too much.
        """
        too_large = PayloadTooLarge(f"the request is over {self.limit // 1_000_000} MB: send a smaller picture")
        if request.stream.request_bytes > self.limit:  # type: ignore[attr-defined]
            raise too_large
        body = bytearray()  # a list of chunks would be many times as large where each is a byte or two
        try:
            async with asyncio.timeout(self.timeout_s):
                async for chunk in request.stream:
                    body += chunk
                    self.held += len(chunk)
                    if len(body) > self.limit:
                        raise too_large
                    if self.held > self.limit * BODIES_IN_MEMORY:
                        raise Unavailable("too many large requests are arriving")
        except BaseException as error:
            self.held -= len(body)
            body.clear()  # the error's traceback holds it
            if isinstance(error, TimeoutError):
                raise RequestTimeout(f"the request took over {self.timeout_s} s to arrive: send it again") from error
            raise
        if not request.transport.is_closing():
            # Sanic may have paused it, and would not see the client go.
            request.transport.resume_reading()  # type: ignore[attr-defined]
        return bytes(body)

    def release(self, body: bytes) -> None:
        """Say that the body is no longer needed."""
        self.held -= len(body)


_one_at_a_time = threading.Lock()


@contextmanager
def large_body_lock(body: bytes) -> Iterator[None]:
    """Hold this while a body is decoded: large ones take turns, as text may take four times its bytes meanwhile.

    They need no longer for it than all at once, which would wait for the GIL.
    """
    with _one_at_a_time if len(body) > LARGE else nullcontext():
        try:
            yield
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # else that text is there during the next one's turn
            raise
