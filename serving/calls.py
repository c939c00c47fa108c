"""What a request that classifies passes through, on whichever route it arrives: readiness, body, queue."""

from collections.abc import Callable

from sanic import HTTPResponse, Request
from sanic.response import json

from runtime.errors import InvalidInput
from serving.bodies import large_body_lock
from serving.inputs import COMPRESSED, parse_inputs


async def run_inference(request: Request) -> HTTPResponse:
    """Classify the image in the body: JSON, the bytes of an image file, or a form with the field `image`."""

    def work(body: bytes) -> tuple[dict, HTTPResponse]:
        with large_body_lock(body):
            inputs = parse_inputs(request.headers.get("content-type", ""), body, request.args)
        answer = request.app.ctx.backend.inference(inputs)
        return answer, json(answer)

    return await handle(request, work)


async def handle(request: Request, work: Callable[[bytes], tuple[dict, HTTPResponse]]) -> HTTPResponse:
    """Read the request's body, run `work` on it in a thread, and return the response that `work` makes.

    The other thing that `work` returns, the backend's answer, is kept in `request.ctx` for the log. Raises what
    `BodyReader.read` raises, Unavailable, or what `work` raises.
    """

    def start(body: bytes) -> tuple[dict, HTTPResponse]:
        request.ctx.is_queued = False
        return work(body)

    ctx = request.app.ctx
    ctx.lifecycle.require_ready()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidInput(COMPRESSED)
    ctx.queue.require_room()  # before the body is read
    body = await ctx.bodies.read(request)
    try:
        ctx.lifecycle.require_ready()  # the server may have been stopped while the body arrived
        # Until a thread starts on it; see DeadlineProtocol.eof_received.
        request.ctx.is_queued = ctx.queue.pending >= ctx.queue.threads
        (request.ctx.answer, response), request.ctx.queued_s = await ctx.queue.run(start, body)
        return response
    finally:
        ctx.bodies.release(body)
