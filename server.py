"""Serve a classifier over HTTP, on Banana's contract and on those of other platforms.

    python server.py                      # http://127.0.0.1:8000
    PORT=9000 BANANA_API_KEY=secret python server.py

Settings are environment variables: runtime/settings.py. A call is processed in a thread, so that the event loop always
answers. A new route goes here, and into serving/openapi.json.
"""

import runtime.startup_errors  # reports an old Python, a missing package or Ctrl-C in one line

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


import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sanic import HTTPResponse, Request, Sanic
from sanic.response import file, json

from serving import middleware, platforms
from serving.bodies import BodyReader
from serving.calls import run_inference
from serving.lifecycle import Lifecycle
from serving.metrics import REQUESTS_IN_PROGRESS, REQUESTS_QUEUED
from serving.protocol import DeadlineProtocol
from serving.work_queue import WorkQueue

# Nothing but the page's own files runs, and no text ever becomes HTML. Its images are those that were chosen, its icon.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
SERVING = Path(__file__).parent / "serving"
# Without `error_format` Sanic looks for one in the source of each route, though on_error writes them all.
GET: dict[str, Any] = {"methods": ["GET", "HEAD"], "ignore_body": True, "error_format": "json"}

server = Sanic("classifier", dumps=msgspec.json.encode, configure_logging=False)
server.config.update(
    MOTD=False,
    REQUEST_TIMEOUT=SETTINGS.REQUEST_TIMEOUT_S,
    RESPONSE_TIMEOUT=SETTINGS.RESPONSE_TIMEOUT_S,  # then Sanic answers 503; every other one is an Unavailable
    KEEP_ALIVE_TIMEOUT=SETTINGS.KEEP_ALIVE_TIMEOUT_S,
    # BodyReader has the limit: Sanic's own closes the connection on a client that is still sending, which then never
    # reads the 413. What is left of a refused body is read and dropped, within KEEP_ALIVE_TIMEOUT_S.
    REQUEST_MAX_SIZE=sys.maxsize,
    # Bytes that may lie unread before their connection is paused: at 65,536 a picture of 100 KB is, on its way.
    REQUEST_BUFFER_SIZE=262_144,
)
server.blueprint(platforms.routes)
middleware.install(server, SETTINGS)


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


# -- start and end -------------------------------------------------------------------------------------------------
@server.after_server_start
async def start_lifecycle(server: Sanic) -> None:
    """Obey signals, wait for the model in the background, and say that the port is open: it answers 503 until then."""
    server.ctx.lifecycle.install_signal_handlers(server)
    server.ctx.lifecycle.watch_model_load(server)  # not before: whoever finds it healthy may stop it
    if not SETTINGS.BANANA_API_KEY and SETTINGS.HOST not in ("127.0.0.1", "::1", "localhost"):
        logger.warning("whoever reaches this port may call: set BANANA_API_KEY, or HOST=127.0.0.1")
    logger.info("listening", extra={"fields": {"host": SETTINGS.HOST, "port": SETTINGS.PORT}})


def main(backend: Any, loading: Future) -> None:
    """Serve until SIGTERM; exit 1 if `loading` the model fails, or if work was left unfinished.

    `backend` is app.py, or anything else with its `init`, `inference`, `status`, `warm_up` and `WORKERS`.
    """
    queue = WorkQueue(backend.WORKERS, SETTINGS.MAX_QUEUE)
    lifecycle = Lifecycle(backend, queue, loading, SETTINGS.SHUTDOWN_GRACE_S, SETTINGS.RESPONSE_TIMEOUT_S)
    server.ctx.backend, server.ctx.queue, server.ctx.lifecycle = backend, queue, lifecycle
    server.ctx.bodies = BodyReader(SETTINGS.MAX_BODY_MB * 1_000_000, SETTINGS.REQUEST_TIMEOUT_S)
    server.ctx.answered, server.ctx.last_change = 0, monotonic()  # when a call last began or ended
    REQUESTS_IN_PROGRESS.set_function(lambda: queue.running)
    REQUESTS_QUEUED.set_function(lambda: queue.queued)
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
