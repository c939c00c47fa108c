"""Reading a request's body in bounded time and memory."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sanic import Request
from sanic.exceptions import PayloadTooLarge, RequestTimeout

from runtime.errors import Unavailable, release_frames

BODIES_IN_MEMORY = 4  # of the largest size, over all connections; what is made of a body is up to twice as large
LARGE_BYTES = 1_000_000


class BodyReader:
    """Reads bodies of at most `limit` bytes, and BODIES_IN_MEMORY times that over all connections."""

    def __init__(self, limit: int, timeout_s: float) -> None:
        self.limit = limit
        self.timeout_s = timeout_s
        self.held = 0  # bytes, over all connections

    async def read(self, request: Request) -> bytes:
        """Return the body, which `held` counts until `release` is called.

        Raises PayloadTooLarge (before reading, if the header gives the length), RequestTimeout, or Unavailable if the
        bodies of all connections are too large together.
        """
        self._check(request.stream.request_bytes)  # type: ignore[attr-defined]
        body = bytearray()  # a list of chunks would take many times the memory if each is a byte or two
        try:
            async with asyncio.timeout(self.timeout_s):
                async for chunk in request.stream:  # type: ignore[attr-defined]
                    body += chunk
                    self.held += len(chunk)
                    self._check(len(body))
        except BaseException as error:  # a client that disconnects cancels this
            self.held -= len(body)
            if isinstance(error, TimeoutError):
                raise RequestTimeout(f"the body did not arrive within {self.timeout_s} s: send it again") from error
            raise
        if not request.transport.is_closing():
            # Sanic may have paused the connection, and would not notice that the client disconnects.
            request.transport.resume_reading()  # type: ignore[attr-defined]
        return bytes(body)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise PayloadTooLarge(f"the body is over {self.limit // 1_000_000} MB: send a smaller image")
        if self.held > self.limit * BODIES_IN_MEMORY:
            raise Unavailable("too many large requests are arriving")

    def release(self, body: bytes) -> None:
        """Stop counting a body that is no longer needed."""
        self.held -= len(body)


_one_at_a_time = threading.Lock()


@contextmanager
def large_body_lock(body: bytes) -> Iterator[None]:
    """Hold this while decoding a body: large ones take turns, because decoding may need four times their bytes.

    Taking turns costs no time, because only one thread at a time can decode (the GIL).
    """
    with _one_at_a_time if len(body) > LARGE_BYTES else nullcontext():
        try:
            yield
        except Exception as error:
            release_frames(error)  # before the next body's turn
            raise
