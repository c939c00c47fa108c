"""What a request that classifies passes through, on whichever route it arrives: readiness, body, queue."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

from sanic import HTTPResponse, Request
from sanic.exceptions import PayloadTooLarge, RequestTimeout
from sanic.response import json

from runtime.errors import InvalidInput, Unavailable, release_frames
from serving.inputs import parse_inputs

BODIES_IN_MEMORY = 4  # of the largest size, over all connections; what is made of a body is up to twice as large
LARGE_BYTES = 1_000_000
Decoded = tuple[dict, Callable[[dict], HTTPResponse]]  # the backend's inputs, and what makes a response of its answer

# Large bodies are decoded one at a time, because that may need four times their bytes. It takes no longer: only one
# thread at a time can decode (the GIL).
_large_body = threading.Lock()


async def run_inference(request: Request) -> HTTPResponse:
    """Classify the image in the body: JSON, the bytes of an image file, or a form with the field `image`."""
    content_type, query = request.headers.get("content-type", ""), request.args
    return await handle(request, lambda body: (parse_inputs(content_type, body, query), json))


async def handle(request: Request, decode: Callable[[bytes], Decoded]) -> HTTPResponse:
    """Read the request's body, have a thread run the backend on what `decode` returns for it, and return the response.

    The backend's answer is kept in `request.ctx` for the log. Raises what `BodyReader.read` raises, Unavailable, or
    what `decode` or the backend raises.
    """
    ctx = request.app.ctx

    def work(body: bytes) -> tuple[dict, HTTPResponse]:
        request.ctx.is_queued = False
        with _large_body if len(body) > LARGE_BYTES else nullcontext():
            try:
                inputs, encode = decode(body)
            except Exception as error:
                release_frames(error)  # before the next body's turn
                raise
        answer = ctx.backend.inference(inputs)
        return answer, encode(answer)

    ctx.lifecycle.require_ready()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidInput("the request is compressed: send it uncompressed")
    ctx.queue.require_room()  # before the body is read
    async with ctx.bodies.read(request) as body:
        ctx.lifecycle.require_ready()  # the server may have been stopped while the body arrived
        # Until a thread starts on it; see DeadlineProtocol.eof_received.
        request.ctx.is_queued = len(ctx.queue.pending) >= ctx.queue.threads
        (request.ctx.answer, response), request.ctx.queued_s = await ctx.queue.run(work, body)
    return response


@dataclass
class BodyReader:
    """Reads bodies in bounded time and memory: BODIES_IN_MEMORY times the limit, over all connections."""

    limit: int  # bytes of a body
    timeout_s: float
    held: int = 0  # bytes, over all connections

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
