"""What a request that classifies passes through, on whichever route it arrives: readiness, body, queue."""

import threading
from collections.abc import Callable
from contextlib import nullcontext

from sanic import HTTPResponse, Request
from sanic.response import json

from runtime.errors import InvalidInput, release_frames
from serving.inputs import parse_inputs

LARGE_BYTES = 1_000_000
Decoded = tuple[dict, Callable[[dict], HTTPResponse]]  # the backend's inputs, and what makes a response of its answer

# Large bodies are decoded one at a time, because that may need four times their bytes. It takes no longer: only one
# thread at a time can decode (the GIL).
_large_body = threading.Lock()


async def run_inference(request: Request) -> HTTPResponse:
    """Classify the image in the body: JSON, the bytes of an image file, or a form with the field `image`."""

    def decode(body: bytes) -> Decoded:
        return parse_inputs(request.headers.get("content-type", ""), body, request.args), json

    return await handle(request, decode)


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
        request.ctx.is_queued = ctx.queue.pending >= ctx.queue.threads
        (request.ctx.answer, response), request.ctx.queued_s = await ctx.queue.run(work, body)
    return response
