"""HTTP around app.py: routes, limits, authentication, errors.

Knows nothing of ONNX or of image formats. Work is done in a thread, so that the event loop always answers.
"""

import hmac
import os
import re
import sys
from concurrent.futures import Future
from pathlib import Path
from time import monotonic, perf_counter
from uuid import uuid4

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import RequestCancelled

import app
from runtime.settings import BadSetting, integer
from serving import calls, page, platforms
from serving.bodies import BodyReader, DeadlineProtocol, content_length
from serving.calls import Refusal, State, require_healthy, require_ready, respond
from serving.lifecycle import Lifecycle
from serving.log import logger
from serving.metrics import Seen, record, watch
from serving.work_queue import Done, WorkQueue

# -- settings, from the environment --------------------------------------------------------------------------------
BANANA_API_KEY = os.environ.get("BANANA_API_KEY")  # what callers have to send; unset: open to everyone
CORS_ORIGIN = os.environ.get("CORS_ORIGIN")  # the web page's origin that browsers let call, or *; unset: none
MAX_QUEUE = integer("MAX_QUEUE", 64, 0, 100_000)  # calls that may wait beside those in work
MAX_BODY_MB = integer("MAX_BODY_MB", 20, 1, 1024)  # of one request, in units of 1,000,000 bytes
REQUEST_TIMEOUT_S = integer("REQUEST_TIMEOUT_S", 30, 1, 3600)  # seconds from a request's first byte to its last
ANSWER_TIMEOUT_S = integer("ANSWER_TIMEOUT_S", 60, 1, 3600)  # seconds from a request's first byte to its answer
IDLE_TIMEOUT_S = integer("IDLE_TIMEOUT_S", 75, 1, 3600)  # seconds that a connection is kept between requests
SHUTDOWN_GRACE_S = integer("SHUTDOWN_GRACE_S", 10, 0, 3600)  # seconds that work may take to finish after SIGTERM
# HOST, PORT and LOG_FORMAT are in server.py; those of the model and of its pictures in app.py.
# ------------------------------------------------------------------------------------------------------------------

BACKLOG = 1024  # connections that may wait to be taken; one more is tried again by its client's system, a second later

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
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Inference-Header-Content-Length, X-Banana-API-Key, "
    "X-Banana-Request-ID",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS, POST",
    "Access-Control-Expose-Headers": "Inference-Header-Content-Length, Retry-After, X-Request-ID",
    "Access-Control-Max-Age": "600",
    "Vary": "Origin",
}
OPEN_PATHS = {"/healthcheck", *platforms.PROBES}  # those who probe have no key
OPENAPI = Path(__file__).parent / "openapi.json"

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
    # Bytes that may lie unread before their connection is paused: at 65,536 a picture of 100 KB is, on its way.
    REQUEST_BUFFER_SIZE=262_144,
    GRACEFUL_SHUTDOWN_TIMEOUT=1,  # seconds for the sockets to close: `drain` has waited for the requests by then
)
server.blueprint(platforms.routes)


@server.before_server_start
async def start(server: Sanic) -> None:
    """Wait for the model in the background: the port answers 503 until it is there."""
    queue = WorkQueue(app.WORKERS, MAX_QUEUE)
    life = Lifecycle(queue, server.ctx.loading, SHUTDOWN_GRACE_S, ANSWER_TIMEOUT_S)
    server.ctx.state = State(queue, life, BodyReader(MAX_BODY_MB * 1_000_000, REQUEST_TIMEOUT_S))
    watch(queue)
    life.await_model(server)


@server.after_server_start
async def listening(server: Sanic) -> None:
    """Say that signals are obeyed and that the port is open."""
    server.ctx.state.life.obey_signals(server)
    logger.info("listening", extra={"fields": server.ctx.address})


@server.post("/", stream=True)
async def classify(request: Request) -> HTTPResponse:
    """Classify what the body holds: JSON, a picture's own bytes, or a form with the field `image`."""
    return await calls.classify(request)


@server.route("/", methods=["GET", "HEAD"], ignore_body=True)
async def look(request: Request) -> HTTPResponse:
    """The page for a browser; it needs no key, and asks for the one that its calls need."""
    return HTTPResponse(
        page.HTML, headers={"Content-Security-Policy": page.POLICY}, content_type="text/html; charset=utf-8"
    )


@server.route("/healthcheck", methods=["GET", "HEAD"], ignore_body=True)
async def healthcheck(request: Request) -> HTTPResponse:
    """Banana's probe: 200 with what runs here while the model answers, else 503."""
    require_healthy(request)
    return respond({"state": "healthy"} | app.status())


@server.post("/_k/warmup", ignore_body=True)
async def warmup(request: Request) -> HTTPResponse:
    """What banana_dev's Client.warmup() calls: the model is loaded and warm, or this is a 503."""
    require_ready(request)
    return respond({"warm": True})


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
    return respond(answer)


@server.route("/metrics", methods=["GET", "HEAD"], ignore_body=True)
async def metrics(request: Request) -> HTTPResponse:
    """Prometheus' metrics."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return HTTPResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)


@server.route("/openapi.json", methods=["GET", "HEAD"], ignore_body=True)
async def openapi(request: Request) -> HTTPResponse:
    """The description of all this for machines."""
    return HTTPResponse(OPENAPI.read_bytes(), content_type="application/json")


@server.on_request
async def authenticate(request: Request) -> None:
    """Refuse a call without the key, where one is set; probes, browsers' preflights and the page's have none."""
    is_page = request.path == "/" and request.method in ("GET", "HEAD")
    if not BANANA_API_KEY or is_page or request.path in OPEN_PATHS or request.method == "OPTIONS":
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
    if code in (404, 405) and not isinstance(error, Refusal):
        message = f"{request.method} {request.path} is not served here: POST a picture to /"
    if code == 503:
        headers["Retry-After"] = "1"
    message = message.encode(errors="backslashreplace").decode()  # a method may hold bytes that are no text
    answer = {"type": ERROR_TYPES.get(code, "error"), "message": message}
    return respond({"error": message if platforms.is_v2(request.path) else answer}, code, headers)


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


def serve(host: str, port: int, loading: Future) -> int:
    """Serve until SIGTERM, and return the exit code: 1 if `loading` the model fails, or if work was left unfinished.

    Raises settings.BadSetting, and OSError where it cannot listen.
    """
    if CORS_ORIGIN and not re.fullmatch(r"\*|https?://[^/\s,]+", CORS_ORIGIN):
        raise BadSetting(f"CORS_ORIGIN={CORS_ORIGIN!r}: expected * or one origin such as https://example.com")
    server.ctx.loading = loading
    server.ctx.address = {"host": host, "port": port}
    server.run(host, port, single_process=True, register_sys_signals=False, protocol=DeadlineProtocol, backlog=BACKLOG)
    life = server.ctx.state.life
    if life.unfinished:
        logger.error("not finished", extra={"fields": {"pending": life.unfinished, "grace_s": SHUTDOWN_GRACE_S}})
        os._exit(1)  # to return would be to wait for the thread that is still at work
    return 1 if life.failed else 0
