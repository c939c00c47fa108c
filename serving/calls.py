"""What every call goes through on whichever route it came: readiness, the body's limits, the queue."""

from collections.abc import Callable
from time import monotonic

from sanic import HTTPResponse, Request
from sanic.response import json

from runtime.errors import InvalidInput, Unavailable
from serving.bodies import large_body_lock
from serving.inputs import COMPRESSED, parse_inputs


async def run_inference(request: Request) -> HTTPResponse:
    """Classify what the body holds: JSON, an image's own bytes, or a form with the field `image`."""

    def work(body: bytes) -> tuple[dict, HTTPResponse]:
        with large_body_lock(body):
            inputs = parse_inputs(request.headers.get("content-type", ""), body, request.args)
        answer = request.app.ctx.backend.inference(inputs)
        return answer, json(answer)

    return await handle(request, work)


async def handle(request: Request, work: Callable[[bytes], tuple[dict, HTTPResponse]]) -> HTTPResponse:
    """Read the request's body and return the response that `work` makes of it in a thread.

    What it returns first, the backend's answer, is kept in `request.ctx` for the log. Raises what `BodyReader.read`
    raises, Unavailable, or what the work raises.
    """
    ctx = request.app.ctx
    ctx.lifecycle.require_ready()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidInput(COMPRESSED)
    ctx.queue.require_room()
    body = await ctx.bodies.read(request)
    try:
        ctx.lifecycle.require_ready()
        ctx.last_change = monotonic()
        (request.ctx.answer, response), request.ctx.queued_s = await ctx.queue.run(work, body)
        return response
    except (InvalidInput, Unavailable) as error:
        refusal = type(error)(str(error))
    finally:
        ctx.bodies.release(body)
        del body
        ctx.answered += 1
        ctx.last_change = monotonic()
    raise refusal  # in place of the error, whose traceback holds the body and all that was made of it
