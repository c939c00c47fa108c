"""Serve a classifier over HTTP, on Banana's contract and on those of other platforms.

    python server.py                      # http://127.0.0.1:8000
    PORT=9000 BANANA_API_KEY=secret python server.py

Settings are environment variables: runtime/settings.py. A call is processed in a thread, so that the event loop always
answers. A new route goes here, and into serving/openapi.json.
"""

import runtime.startup_errors  # reports an old Python, a missing package or Ctrl-C in one line

import hmac
import logging
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

from runtime.settings import ServerSettings, read
from serving.log import LineHandler, logger

SETTINGS = read(ServerSettings)


def load(backend: Any) -> Future:
    """Begin to load the backend's model, in a thread, and to write the log."""
    logging.basicConfig(handlers=[LineHandler(SETTINGS.LOG_FORMAT == "json")])
    return ThreadPoolExecutor(1, "load").submit(backend.init)


if __name__ == "__main__":  # here, because importing what follows takes as long and leaves a CPU idle
    if sys.argv[1:] not in ([], ["serve"]):  # which is what SageMaker passes
        sys.exit("usage: python server.py [serve]; docs/configuration.md has the settings")
    import app

    loading = load(app)

import asyncio

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import BadRequest, RequestCancelled, Unauthorized
from sanic.response import file, json

from runtime.errors import InvalidInput, Unavailable
from serving import platforms
from serving.bodies import BodyReader
from serving.calls import run_inference
from serving.lifecycle import Lifecycle
from serving.metrics import IN_WORK, QUEUED, get_request_id, record
from serving.protocol import DeadlineProtocol
from serving.work_queue import WorkQueue

STATUSES = {InvalidInput: 422, BadRequest: 422, RequestCancelled: 499, Unavailable: 503}  # 499 is for the log alone
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
HEADERS = {  # of every answer
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
if SETTINGS.CORS_ORIGIN:
    HEADERS |= {
        "Access-Control-Allow-Headers": "Authorization, Content-Type, Inference-Header-Content-Length, "
        "X-Banana-API-Key, X-Banana-Request-ID",
        "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS, POST",
        "Access-Control-Expose-Headers": "Inference-Header-Content-Length, Retry-After, X-Request-ID",
        "Access-Control-Allow-Origin": SETTINGS.CORS_ORIGIN,
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
# Nothing but the page's own files runs, and no text ever becomes HTML. Its images are those that were chosen, its icon.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# Those who probe have no key, nor has a browser that asks for the page's files.
OPEN_PATHS = {"/healthcheck", "/page/style.css", "/page/script.js", *platforms.PROBES}
SERVING = Path(__file__).parent / "serving"
# Without `error_format` Sanic looks for one in the source of each route, though on_error writes them all.
GET: dict[str, Any] = {"methods": ["GET", "HEAD"], "ignore_body": True, "error_format": "json"}

server = Sanic("classifier", dumps=msgspec.json.encode, configure_logging=False)
server.config.update(
    MOTD=False,
    REQUEST_TIMEOUT=SETTINGS.REQUEST_TIMEOUT_S,
    RESPONSE_TIMEOUT=SETTINGS.ANSWER_TIMEOUT_S,  # then Sanic answers 503; every other one is an Unavailable
    KEEP_ALIVE_TIMEOUT=SETTINGS.IDLE_TIMEOUT_S,
    # BodyReader has the limit: Sanic's own closes the connection on a client that is still sending, which then never
    # reads the 413. What is left of a refused body is read and dropped, within IDLE_TIMEOUT_S.
    REQUEST_MAX_SIZE=sys.maxsize,
    # Bytes that may lie unread before their connection is paused: at 65,536 a picture of 100 KB is, on its way.
    REQUEST_BUFFER_SIZE=262_144,
)
server.blueprint(platforms.routes)


# -- routes --------------------------------------------------------------------------------------------------------
@server.post("/", stream=True)
async def classify(request: Request) -> HTTPResponse:
    """Classify what the body holds: JSON, an image's own bytes, or a form with the field `image`."""
    return await run_inference(request)


@server.route("/", **GET)
async def show_page(request: Request) -> HTTPResponse:
    """The page for a browser; it needs no key, and asks for the one that its calls need."""
    return await file(SERVING / "page" / "index.html", headers={"Content-Security-Policy": PAGE_POLICY}, no_store=True)


@server.route(r"/page/<name:(style\.css|script\.js)>", **GET)
async def show_page_file(request: Request, name: str) -> HTTPResponse:
    """The page's style or script. Not Sanic's static(): it keeps a request's body in memory, however large."""
    return await file(SERVING / "page" / name, no_store=True)


@server.route("/healthcheck", **GET)
async def healthcheck(request: Request) -> HTTPResponse:
    """Banana's probe: 200 with what runs here while the model answers, else 503."""
    request.app.ctx.lifecycle.require_healthy()
    return json({"state": "healthy"} | request.app.ctx.backend.status())


@server.post("/_k/warmup", ignore_body=True)
async def warmup(request: Request) -> HTTPResponse:
    """What banana_dev's Client.warmup() calls: the model is loaded and warm, or this is a 503."""
    request.app.ctx.lifecycle.require_ready()
    return json({"warm": True})


@server.route("/_k/status", **GET)
async def status(request: Request) -> HTTPResponse:
    """Potassium's status: whether a call would start at once, how many were answered, and for how long idle or busy."""
    ctx = request.app.ctx
    since_ms = int((monotonic() - ctx.last_change) * 1e3)
    busy = ctx.queue.pending > 0
    return json(
        {
            "gpu_available": ctx.lifecycle.ready and ctx.queue.pending < ctx.backend.WORKERS,
            "sequence_number": ctx.answered,
            "idle_time": 0 if busy else since_ms,
            "inference_time": since_ms if busy else 0,
        }
    )


@server.route("/metrics", **GET)
async def metrics(request: Request) -> HTTPResponse:
    """Prometheus' metrics."""
    return HTTPResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)


@server.route("/openapi.json", **GET)
async def openapi(request: Request) -> HTTPResponse:
    """The description of all this for machines."""
    return HTTPResponse((SERVING / "openapi.json").read_bytes(), content_type="application/json")


# -- what every request goes through -------------------------------------------------------------------------------
@server.on_request
async def take_turns(request: Request) -> None:
    """Let other connections have theirs: Sanic works without a pause through all requests that one has sent."""
    await asyncio.sleep(0)


@server.on_request
async def authenticate(request: Request) -> None:
    """Refuse a call without the key, where one is set; probes, browsers' preflights and the page's have none."""
    key = SETTINGS.BANANA_API_KEY
    is_page = request.path == "/" and request.method in ("GET", "HEAD")
    unread = not request.head  # nor a key in it: it is told so
    if not key or unread or is_page or request.path in OPEN_PATHS or request.method == "OPTIONS":
        return
    sent = request.headers.get("X-Banana-API-Key") or request.token or ""
    if not hmac.compare_digest(sent.encode(errors="replace"), key.encode()):
        raise Unauthorized("send the API key of this endpoint as X-Banana-API-Key", scheme="Bearer")


@server.on_request
async def drop_body(request: Request) -> None:
    """Read past the body of a request that needs none: Sanic would keep it in memory, or log an error."""
    if request.method == "OPTIONS" or (request.route and request.route.extra.ignore_body):
        async for _ in request.stream:
            pass


@server.exception(Exception, RequestCancelled)  # type: ignore[arg-type]
async def on_error(request: Request, error: Exception) -> HTTPResponse:
    """Answer any error as JSON. Never 400: banana-dev takes that for "over quota" and repeats the call for minutes."""
    known = (code for kind, code in STATUSES.items() if isinstance(error, kind))
    code = next(known, getattr(error, "status_code", 500))
    headers = dict(getattr(error, "headers", {}))
    if request.method == "OPTIONS" and code == 405:
        return HTTPResponse(None, 204, headers)
    lifecycle = request.app.ctx.lifecycle
    is_v2 = f"{request.path}/".startswith("/v2/")
    message = str(error)
    if code == 500:
        logger.error("failed", exc_info=error, extra={"fields": {"id": get_request_id(request)}})
        message = "the server failed; its log says why"
        lifecycle.check_model()
    if code in (404, 405) and not request.route:
        message = f"{request.method} {request.path} is not served here: "
        message += platforms.HERE if is_v2 else "POST a picture to /"
    if code == 503:
        message += ": try again"
        headers["Retry-After"] = "1"
    if code == 408 or lifecycle.stopping:
        request.stream.keep_alive = False
    message = message.encode(errors="backslashreplace").decode()  # a method may hold bytes that are no text
    answer = {"type": ERROR_TYPES.get(code, "error"), "message": message}
    return json({"error": message if is_v2 else answer}, code, headers)


@server.on_response
async def finish(request: Request, response: HTTPResponse) -> None:
    """Add the headers that every answer has, count it, and write its line in the log."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)  # the page has a policy of its own
    response.headers["X-Request-ID"] = get_request_id(request)
    record(request, response.status)


# -- start and end -------------------------------------------------------------------------------------------------
@server.after_server_start
async def listening(server: Sanic) -> None:
    """Obey signals, wait for the model in the background, and say that the port is open: it answers 503 until then."""
    server.ctx.lifecycle.obey_signals(server)
    server.ctx.lifecycle.await_model(server)  # not before: whoever finds it healthy may stop it
    if not SETTINGS.BANANA_API_KEY and SETTINGS.HOST not in ("127.0.0.1", "::1", "localhost"):
        logger.warning("whoever reaches this port may call: set BANANA_API_KEY, or HOST=127.0.0.1")
    logger.info("listening", extra={"fields": {"host": SETTINGS.HOST, "port": SETTINGS.PORT}})


def main(backend: Any, loading: Future) -> None:
    """Serve until SIGTERM; exit 1 if `loading` the model fails, or if work was left unfinished.

    `backend` is app.py, or anything else with its `init`, `inference`, `status`, `warm_up` and `WORKERS`.
    """
    queue = WorkQueue(backend.WORKERS, SETTINGS.MAX_QUEUE)
    lifecycle = Lifecycle(backend, queue, loading, SETTINGS.SHUTDOWN_GRACE_S, SETTINGS.ANSWER_TIMEOUT_S)
    server.ctx.backend, server.ctx.queue, server.ctx.lifecycle = backend, queue, lifecycle
    server.ctx.bodies = BodyReader(SETTINGS.MAX_BODY_MB * 1_000_000, SETTINGS.REQUEST_TIMEOUT_S)
    server.ctx.answered, server.ctx.last_change = 0, monotonic()  # when a call last began or ended
    IN_WORK.set_function(lambda: queue.in_work)
    QUEUED.set_function(lambda: queue.queued)
    try:
        server.run(
            SETTINGS.HOST,
            SETTINGS.PORT,
            single_process=True,
            register_sys_signals=False,
            protocol=DeadlineProtocol,
            backlog=1024,  # connections that may wait; the client's system tries one more again, a second later
        )
    except OSError as error:
        sys.exit(f"server.py: cannot listen on {SETTINGS.HOST}:{SETTINGS.PORT}: {error.strerror}")
    if pending := lifecycle.unfinished:
        logger.error("not finished", extra={"fields": {"pending": pending, "grace_s": SETTINGS.SHUTDOWN_GRACE_S}})
        os._exit(1)  # to return would be to wait for the thread that is still at work
    sys.exit(1 if loading.exception() else 0)


if __name__ == "__main__":
    main(app, loading)
