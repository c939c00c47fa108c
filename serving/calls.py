"""What every call goes through on whichever route it came: readiness, the body's limits, the queue.

server.py has the routes of Banana's contract, platforms.py those of other platforms.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

import msgspec
from sanic import HTTPResponse, Request
from sanic.exceptions import SanicException

from runtime.errors import InvalidInput, Unavailable
from serving.backend import Backend
from serving.bodies import COMPRESSED, BodyReader, BodyTooLarge, TooManyBodies, inputs_of, turn
from serving.lifecycle import Lifecycle
from serving.work_queue import QueueFull, WorkQueue

to_json = msgspec.json.Encoder().encode


class Refusal(SanicException):
    """An answer other than 200; `status_code` is one of ERROR_TYPES and the message says what to do about it."""

    quiet = True


def refuse_for_now(reason: object) -> Refusal:
    """Return the answer 503 of a server that cannot take the call now."""
    return Refusal(f"{reason}: try again", 503)


@dataclass
class State:
    """What the routes tell each other; touched in the event loop only."""

    backend: Backend
    queue: WorkQueue
    lifecycle: Lifecycle
    bodies: BodyReader
    answered: int = 0
    last_change: float = field(default_factory=monotonic)  # monotonic seconds at which a call last began or ended


async def run_inference(request: Request) -> HTTPResponse:
    """Classify what the body holds: JSON, an image's own bytes, or a form with the field `image`."""

    def work(body: bytes) -> tuple[dict, HTTPResponse]:
        with turn(body):
            inputs = inputs_of(request.headers.get("content-type", ""), body, request.args)
        answer = request.app.ctx.state.backend.inference(inputs)
        return answer, respond(answer)

    return await call(request, work)


async def call(request: Request, work: Callable[[bytes], tuple[dict, HTTPResponse]]) -> HTTPResponse:
    """Read the request's body and return the response that `work` makes of it in a thread.

    What it returns first, the backend's answer, is kept in `request.ctx` for the log. Raises Refusal, also where `work`
    raises InvalidInput or Unavailable.
    """
    state = request.app.ctx.state
    require_ready(request)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(COMPRESSED, 422)
    try:
        state.queue.require_room()
        body = await state.bodies.read(request)
    except BodyTooLarge as error:
        raise Refusal(
            f"the request is over {state.bodies.limit // 1_000_000} MB: send a smaller picture", 413
        ) from error
    except TimeoutError as error:
        request.stream.keep_alive = False
        raise Refusal(f"the request took over {state.bodies.timeout_s} s to arrive: send it again", 408) from error
    except (QueueFull, TooManyBodies) as error:
        raise refuse_for_now(error or "too many large requests are arriving") from error
    try:
        require_ready(request)
        state.last_change = monotonic()
        (request.ctx.answer, response), request.ctx.queued_s = await state.queue.run(work, body)
    except (QueueFull, Unavailable) as error:
        raise refuse_for_now(error) from error
    except InvalidInput as error:
        refusal = Refusal(str(error), 422)
    else:
        return response
    finally:
        state.bodies.release(body)
        del body
        state.answered += 1
        state.last_change = monotonic()
    raise refusal  # here, where the error is gone: its traceback holds the body and all that was made of it


def respond(content: object, code: int = 200, headers: dict | None = None) -> HTTPResponse:
    """Return `content` as JSON."""
    return HTTPResponse(to_json(content), code, headers, "application/json")


def require_ready(request: Request) -> None:
    """Raise Refusal before the model has answered its first picture, and after SIGTERM."""
    lifecycle = request.app.ctx.state.lifecycle
    if lifecycle.stopping:
        request.stream.keep_alive = False
    if reason := lifecycle.get_unready_reason():
        raise refuse_for_now(reason)


def require_healthy(request: Request) -> None:
    """Raise Refusal where `require_ready` does, and when a call is stuck or the model fails on its own picture."""
    require_ready(request)
    if reason := request.app.ctx.state.lifecycle.get_unhealthy_reason():
        raise refuse_for_now(reason)
