"""HTTP around app.py: routes, limits, authentication, errors.

    python server.py                      # http://127.0.0.1:8000
    PORT=9000 BANANA_API_KEY=secret python server.py

Knows nothing of ONNX or of image formats. A call's work is done in a thread, so that the event loop always answers.
"""

import ctypes
import hmac
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter
from uuid import uuid4

import msgspec
from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import RequestCancelled, SanicException

import app
import page
from app import InvalidInput, Outcome
from lifecycle import Lifecycle
from observing import Seen, log_to_stderr, logger, record, watch
from reading import BodyReader, BodyTooLarge, DeadlineProtocol, InvalidBody, TooManyBodies, content_length, inputs_of
from settings import BadSetting, choice, integer
from workers import Done, QueueFull, WorkQueue

# -- settings, from the environment --------------------------------------------------------------------------------
HOST = os.environ.get("HOST") or "0.0.0.0"  # the address to listen on
PORT = integer("PORT", 8000, 1, 65_535)
BANANA_API_KEY = os.environ.get("BANANA_API_KEY")  # what callers have to send; unset: open to everyone
CORS_ORIGIN = os.environ.get("CORS_ORIGIN")  # the web page's origin that browsers let call, or *; unset: none
LOG_FORMAT = choice("LOG_FORMAT", "text", ("text", "json"))
MAX_QUEUE = integer("MAX_QUEUE", 64, 0, 100_000)  # calls that may wait beside those in work
MAX_BODY_MB = integer("MAX_BODY_MB", 20, 1, 1024)  # of one request, in units of 1,000,000 bytes
REQUEST_TIMEOUT_S = integer("REQUEST_TIMEOUT_S", 30, 1, 3600)  # seconds from a request's first byte to its last
ANSWER_TIMEOUT_S = integer("ANSWER_TIMEOUT_S", 60, 1, 3600)  # seconds from a request's first byte to its answer
IDLE_TIMEOUT_S = integer("IDLE_TIMEOUT_S", 75, 1, 3600)  # seconds that a connection is kept between requests
SHUTDOWN_GRACE_S = integer("SHUTDOWN_GRACE_S", 10, 0, 3600)  # seconds that work may take to finish after SIGTERM
# MODEL_PATH, EXECUTION_PROVIDER, PRECISION, THREADS, MAX_IMAGES and MAX_PIXELS are in app.py.
# ------------------------------------------------------------------------------------------------------------------

BACKLOG = 1024  # connections that may wait to be taken; one more is tried again by its client's system, a second later

M_MMAP_THRESHOLD = -3  # as malloc.h has it
LARGE_ALLOCATION = 2_000_000  # bytes; the pictures of most calls are smaller, and are not worth a system call each

ERROR_TYPES = {
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    422: "invalid_input",
    500: "internal_error",
    503: "unavailable",
}
SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
CORS_HEADERS = {
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Banana-API-Key, X-Banana-Request-ID",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS, POST",
    "Access-Control-Expose-Headers": "Retry-After, X-Request-ID",
    "Access-Control-Max-Age": "600",
    "Vary": "Origin",
}
OPENAPI = Path(__file__).parent / "openapi.json"

to_json = msgspec.json.Encoder().encode

server = Sanic("classifier", configure_logging=False)
server.config.update(
    MOTD=False,
    ACCESS_LOG=False,
    REQUEST_TIMEOUT=REQUEST_TIMEOUT_S,
    RESPONSE_TIMEOUT=ANSWER_TIMEOUT_S,
    KEEP_ALIVE_TIMEOUT=IDLE_TIMEOUT_S,
    # BodyReader has the limit: Sanic's own closes the connection on a client that is still sending, which then never
    # reads the 413. What is left of a refused body is read and dropped, within IDLE_TIMEOUT_S.
    REQUEST_MAX_SIZE=sys.maxsize,
    GRACEFUL_SHUTDOWN_TIMEOUT=1,  # seconds for the sockets to close: `drain` has waited for the requests by then
)


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


@server.before_server_start
async def start(server: Sanic) -> None:
    """Load the model in a thread: the port answers 503 until it is there."""
    queue = WorkQueue(app.WORKERS, MAX_QUEUE)
    life = Lifecycle(queue, SHUTDOWN_GRACE_S, ANSWER_TIMEOUT_S)
    server.ctx.state = State(queue, life, BodyReader(MAX_BODY_MB * 1_000_000, REQUEST_TIMEOUT_S))
    watch(queue)
    life.load(server)


@server.after_server_start
async def listening(server: Sanic) -> None:
    """Say that signals are obeyed and that the port is open."""
    server.ctx.state.life.obey_signals(server)
    logger.info("listening", extra={"fields": {"host": HOST, "port": PORT}})


@server.post("/", stream=True)
async def classify(request: Request) -> HTTPResponse:
    """Classify what the body holds: JSON, a picture's own bytes, or a form with the field `image`."""
    state = request.app.ctx.state
    state.life.last_call = monotonic()
    require_ready(request)
    try:
        state.queue.require_room()
        body = await state.bodies.read(request)
    except BodyTooLarge as error:
        raise Refusal(f"the request is over {MAX_BODY_MB} MB: send a smaller picture", 413) from error
    except TimeoutError as error:
        request.stream.keep_alive = False
        raise Refusal(f"the request took over {REQUEST_TIMEOUT_S} s to arrive: send it again", 408) from error
    except (QueueFull, TooManyBodies) as error:
        raise Unavailable(error or "too many large requests are arriving") from error
    try:
        require_ready(request)
        state.last_change = monotonic()
        done = await state.queue.run(answer, request, body)
    except QueueFull as error:
        raise Unavailable(error) from error
    except (InvalidInput, InvalidBody) as error:
        raise Refusal(str(error), 422) from error
    finally:
        state.bodies.release(body)
        state.answered += 1
        state.last_change = monotonic()
    request.ctx.done = done
    return respond(to_json(done.result.answer))


@server.route("/", methods=["GET", "HEAD"], ignore_body=True)
async def look(request: Request) -> HTTPResponse:
    """The page for a browser; it needs no key, and asks for the one that its calls need."""
    return HTTPResponse(
        page.HTML, headers={"Content-Security-Policy": page.POLICY}, content_type="text/html; charset=utf-8"
    )


@server.route("/healthcheck", methods=["GET", "HEAD"], ignore_body=True)
async def healthcheck(request: Request) -> HTTPResponse:
    """Banana's probe: 200 with what runs here while the model answers, else 503."""
    state = request.app.ctx.state
    require_ready(request)
    if why := state.life.why_unhealthy():
        raise Unavailable(why)
    return respond(to_json({"state": "healthy"} | app.status()))


@server.post("/_k/warmup", ignore_body=True)
async def warmup(request: Request) -> HTTPResponse:
    """What banana_dev's Client.warmup() calls: the model is loaded and warm, or this is a 503."""
    require_ready(request)
    return respond(to_json({"warm": True}))


@server.route("/_k/status", methods=["GET", "HEAD"], ignore_body=True)
async def status(request: Request) -> HTTPResponse:
    """Potassium's status: whether a call would start at once, how many were answered, and for how long idle or busy."""
    state = request.app.ctx.state
    since_ms = int((monotonic() - state.last_change) * 1e3)
    busy = state.queue.pending > 0
    answer = {
        "gpu_available": state.life.ready and state.queue.pending < app.WORKERS,
        "sequence_number": state.answered,
        "idle_time": 0 if busy else since_ms,
        "inference_time": since_ms if busy else 0,
    }
    return respond(to_json(answer))


@server.route("/metrics", methods=["GET", "HEAD"], ignore_body=True)
async def metrics(request: Request) -> HTTPResponse:
    """Prometheus' metrics."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return HTTPResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)


@server.route("/openapi.json", methods=["GET", "HEAD"], ignore_body=True)
async def openapi(request: Request) -> HTTPResponse:
    """The description of all this for machines."""
    return respond(OPENAPI.read_bytes())


@server.on_request
async def authenticate(request: Request) -> None:
    """Refuse a call without the key, where one is set; probes, browsers' preflights and the page's have none."""
    is_page = request.path == "/" and request.method in ("GET", "HEAD")
    if not BANANA_API_KEY or is_page or request.path == "/healthcheck" or request.method == "OPTIONS":
        return
    given = request.headers.get("X-Banana-API-Key") or request.token or ""
    if not hmac.compare_digest(given.encode(errors="replace"), BANANA_API_KEY.encode()):
        raise Refusal("send the API key of this endpoint as X-Banana-API-Key", 401)


@server.on_request
async def drop_body(request: Request) -> None:
    """Read past the body of a request that needs none: Sanic would keep it in memory, or log an error."""
    if request.route and request.route.extra.ignore_body:
        async for _ in request.stream:
            pass


@server.exception(Exception, RequestCancelled)
async def on_error(request: Request, error: Exception) -> HTTPResponse:
    """Answer any error as JSON. Never 400: banana-dev takes that for "over quota" and repeats the call for minutes."""
    gone = isinstance(error, RequestCancelled)
    code = 499 if gone else getattr(error, "status_code", 500)  # 499 is for the log only, as with nginx
    headers = dict(getattr(error, "headers", {}))
    if request.method == "OPTIONS" and code == 405:
        return HTTPResponse(None, 204, headers)
    code = 422 if code == 400 else code
    message = str(error)
    if code == 500:
        logger.error("failed", exc_info=error, extra={"fields": {"id": id_of(request)}})
        message = "the server failed; its log says why"
        request.app.ctx.state.life.suspect()
    if code in (404, 405):
        message = f"{request.method} {request.path} is not served here: POST a picture to /"
    if code == 503:
        headers["Retry-After"] = "1"
    message = message.encode(errors="backslashreplace").decode()  # a method may hold bytes that are no text
    return respond(to_json({"error": {"type": ERROR_TYPES.get(code, "error"), "message": message}}), code, headers)


@server.on_response
async def finish(request: Request, response: HTTPResponse) -> None:
    """Add the headers that every answer has, count it, and write its line in the log."""
    for name, value in SAFE_HEADERS.items():
        response.headers.setdefault(name, value)  # the page has a policy of its own
    response.headers["X-Request-ID"] = id_of(request)
    if CORS_ORIGIN:
        response.headers.update(CORS_HEADERS | {"Access-Control-Allow-Origin": CORS_ORIGIN})
    seen = Seen(
        id=id_of(request),
        method=request.method,
        path=request.path,
        status=response.status,
        bytes=content_length(request),
        total_ms=round((perf_counter() - (request.stream.perft0 or perf_counter())) * 1e3, 1),
    )
    done: Done | None = getattr(request.ctx, "done", None)
    if done is not None:
        timing = done.result.answer["timing_ms"]
        seen.pictures = done.result.pictures
        seen.queue_ms, seen.decode_ms, seen.model_ms = round(done.queued_s * 1e3, 1), timing["decode"], timing["model"]
    record(seen)


def id_of(request: Request) -> str:
    """Return the caller's X-Banana-Request-ID if it is fit to be shown, else one made for the request."""
    if not hasattr(request.ctx, "id"):
        given = request.headers.get("X-Banana-Request-ID", "")
        request.ctx.id = given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else str(uuid4())
    return request.ctx.id


def respond(body: bytes, code: int = 200, headers: dict | None = None) -> HTTPResponse:
    """Return `body`, which is JSON already, as a response."""
    return HTTPResponse(body, code, headers, "application/json")


def require_ready(request: Request) -> None:
    """Raise Unavailable before the model has answered its first picture, and after SIGTERM."""
    life = request.app.ctx.state.life
    if life.stopping:
        request.stream.keep_alive = False
    if why := life.why_not():
        raise Unavailable(why)


def answer(request: Request, body: bytes) -> Outcome:
    """Return the outcome of a call, in a thread. Raises InvalidBody or InvalidInput."""
    inputs = inputs_of(request.headers.get("content-type", ""), body, request.args)
    return app.classify(inputs, alone=request.app.ctx.state.queue.pending == 1)


def give_memory_back() -> None:
    """Have glibc return what a large picture took to the system, not keep it for the next; elsewhere, do nothing.

    Left to itself it keeps up to 32 MB in every thread once there has been a picture of that size (mallopt(3)).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, LARGE_ALLOCATION)


def main() -> None:
    """Serve until SIGTERM; exit 1 if the model cannot be loaded, or if work was left unfinished."""
    if CORS_ORIGIN and not re.fullmatch(r"\*|https?://[^/\s,]+", CORS_ORIGIN):
        raise BadSetting(f"CORS_ORIGIN={CORS_ORIGIN!r}: expected * or one origin such as https://example.com")
    log_to_stderr(LOG_FORMAT == "json")
    give_memory_back()
    try:
        server.run(
            HOST, PORT, single_process=True, register_sys_signals=False, protocol=DeadlineProtocol, backlog=BACKLOG
        )
    except OSError as error:
        sys.exit(f"server.py: cannot listen on {HOST}:{PORT}: {error.strerror}")
    state = server.ctx.state
    if state.queue.pending:
        logger.error("not finished", extra={"fields": {"pending": state.queue.pending, "grace_s": SHUTDOWN_GRACE_S}})
        os._exit(1)  # sys.exit would wait for the thread that is still at work
    sys.exit(1 if state.life.failed else 0)


if __name__ == "__main__":
    main()
