"""Reading a request's body in bounded time and memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sanic import Request
from sanic.exceptions import PayloadTooLarge, RequestTimeout

from runtime.errors import Unavailable

BODIES_IN_MEMORY = 4  # of the largest size, over all connections; what is made of a body is up to twice as large


class BodyReader:
    """Reads bodies of at most `limit` bytes, and BODIES_IN_MEMORY times that over all connections."""

    def __init__(self, limit: int, timeout_s: float) -> None:
        self.limit = limit
        self.timeout_s = timeout_s
        self.held = 0  # bytes, over all connections

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Give the body, which counts as held as long as the context lasts.

        Raises PayloadTooLarge (before reading, if the header gives the length), RequestTimeout, or Unavailable if the
        bodies of all connections are too large together.
        """
        self._check(request.stream.request_bytes)  # type: ignore[attr-defined]
        body: bytes | bytearray = bytearray()  # a list of chunks would take many times the memory if they are tiny
        try:
            try:
                async with asyncio.timeout(self.timeout_s):
                    async for chunk in request.stream:  # type: ignore[attr-defined]
                        body += chunk
                        self.held += len(chunk)
                        self._check(len(body))
            except TimeoutError as error:
                raise RequestTimeout(f"the body did not arrive within {self.timeout_s} s: send it again") from error
            if not request.transport.is_closing():
                # Sanic may have paused the connection, and would not notice that the client disconnects.
                request.transport.resume_reading()  # type: ignore[attr-defined]
            body = bytes(body)
            yield body
        finally:
            self.held -= len(body)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise PayloadTooLarge(f"the body is over {self.limit // 1_000_000} MB: send a smaller image")
        if self.held > self.limit * BODIES_IN_MEMORY:
            raise Unavailable("too many large requests are arriving")
