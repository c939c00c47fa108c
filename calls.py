"""What every call goes through on whichever route it came: readiness, the body's limits, the queue.

    python -c "import calls; help(calls.call)"

routes.py has the routes of Banana's contract, platforms.py those of other platforms.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

import msgspec
from sanic import HTTPResponse, Request
from sanic.exceptions import SanicException

import app
from app import InvalidInput, Outcome
from base64_text import InvalidBase64
from lifecycle import Lifecycle
from reading import BodyReader, BodyTooLarge, InvalidBody, TooManyBodies, inputs_of, turn
from workers import QueueFull, WorkQueue

to_json = msgspec.json.Encoder().encode


class Refusal(SanicException):
    """An answer other than 200; `status_code` is one of ERROR_TYPES and the message says what to do about it."""

    quiet = True


class Unavailable(Refusal):
    """The server cannot take the call now."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"{reason}: try again", 503)


@dataclass
class State:
    """What the routes tell each other; touched in the event loop only."""

    queue: WorkQueue
    life: Lifecycle
    bodies: BodyReader
    answered: int = 0
    last_change: float = field(default_factory=monotonic)  # monotonic seconds at which a call last began or ended


async def classify(request: Request) -> HTTPResponse:
    """Classify what the body holds: JSON, a picture's own bytes, or a form with the field `image`."""
    outcome = await call(request, answer)
    return respond(outcome.answer)


async def call(request: Request, work: Callable[[Request, bytes], Outcome]) -> Outcome:
    """Read the request's body and return what `work` makes of both in a thread.

    Raises Refusal, also where `work` raises InvalidBody or InvalidInput.
    """
    state = request.app.ctx.state
    state.life.last_call = monotonic()
    require_ready(request)
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
        raise Unavailable(error or "too many large requests are arriving") from error
    try:
        require_ready(request)
        state.last_change = monotonic()
        request.ctx.done = await state.queue.run(work, request, body)
    except QueueFull as error:
        raise Unavailable(error) from error
    except (InvalidInput, InvalidBody, InvalidBase64) as error:
        refusal = Refusal(str(error), 422)
    else:
        return request.ctx.done.result
    finally:
        state.bodies.release(body)
        del body
        state.answered += 1
        state.last_change = monotonic()
    raise refusal  # here, where the error is gone: its traceback holds the body and all that was made of it


def answer(request: Request, body: bytes) -> Outcome:
    """Return the outcome of a call, in a thread. Raises InvalidBody or InvalidInput."""
    with turn(body):
        inputs = inputs_of(request.headers.get("content-type", ""), body, request.args)
    return app.classify(inputs, alone=is_alone(request))


def is_alone(request: Request) -> bool:
    """Return whether no other call is in work or waiting."""
    return request.app.ctx.state.queue.pending == 1


def respond(content: object, code: int = 200, headers: dict | None = None) -> HTTPResponse:
    """Return `content` as JSON."""
    return HTTPResponse(to_json(content), code, headers, "application/json")


def require_ready(request: Request) -> None:
    """Raise Unavailable before the model has answered its first picture, and after SIGTERM."""
    life = request.app.ctx.state.life
    if life.stopping:
        request.stream.keep_alive = False
    if why := life.why_not():
        raise Unavailable(why)


def require_healthy(request: Request) -> None:
    """Raise Unavailable where `require_ready` does, and when a call is stuck or the model fails on its own picture."""
    require_ready(request)
    if why := request.app.ctx.state.life.why_unhealthy():
        raise Unavailable(why)
