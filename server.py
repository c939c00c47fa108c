"""Serve a classifier over HTTP: settings, routes, startup.

    python server.py                                   # listens on port 8000 of all interfaces: http://127.0.0.1:8000
    PORT=9000 BANANA_API_KEY=secret python server.py   # settings are environment variables: docs/configuration.md

The steps of a request that classifies an image, their limits, and the status of one that fails there:

1. authenticate  the key, if BANANA_API_KEY is set: 401                                    serving/middleware.py
2. ready         the model is loaded and the server is not stopping: 503                   serving/lifecycle.py
3. body          over MAX_BODY_MB: 413; together over 4 times that: 503; late: 408         serving/calls.py
4. queue         MAX_QUEUE requests may wait for a thread: 503                             serving/work_queue.py
5. inference     in that thread; invalid input: 422; many large images: 503; a bug: 500    app.py
6. response      not within RESPONSE_TIMEOUT_S: 503; errors as JSON, headers, metrics, log serving/middleware.py
"""

import runtime.startup_errors  # reports an old Python, a missing package or Ctrl-C in one line

import argparse
import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

from runtime.settings import ServerSettings, read
from serving.log import logger, start_log

SETTINGS = read(ServerSettings)


def load(backend: Any) -> Future:
    """Set up the log, and start to load the backend's model in a thread."""
    start_log(SETTINGS.LOG_FORMAT)
    return ThreadPoolExecutor(1, "load").submit(backend.init)


if __name__ == "__main__":  # before the next imports: the model loads during them (0.46 s to a response, not 0.60)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["serve"], help="what SageMaker passes; the same as without it")
    parser.parse_args()
    import app

    loading = load(app)

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sanic import HTTPResponse, Request, Sanic
from sanic.response import file, json

from serving import middleware, open_inference
from serving.calls import BodyReader, run_inference
from serving.lifecycle import Lifecycle, State
from serving.middleware import GET  # and HEAD, without a body
from serving.protocol import DeadlineProtocol
from serving.work_queue import WorkQueue

SERVING = Path(__file__).parent / "serving"
# The page runs only its own files and never turns text into HTML. It shows chosen images (blob:) and an icon (data:).
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

server = Sanic("classifier", dumps=msgspec.json.encode, configure_logging=False)
server.config.update(
    MOTD=False,
    REQUEST_TIMEOUT=SETTINGS.REQUEST_TIMEOUT_S,
    RESPONSE_TIMEOUT=SETTINGS.RESPONSE_TIMEOUT_S,  # when it expires, Sanic itself responds 503
    KEEP_ALIVE_TIMEOUT=SETTINGS.KEEP_ALIVE_TIMEOUT_S,
    # BodyReader enforces the limit; Sanic's own would cut off a client that is still sending.
    REQUEST_MAX_SIZE=sys.maxsize,
    # Sanic pauses a connection that has this many unread bytes; at its default, 65,536, it would pause most uploads.
    REQUEST_BUFFER_SIZE=262_144,
)
middleware.install(server, SETTINGS)
server.blueprint(open_inference.routes)  # /v2/…: the Open Inference Protocol


# -- routes --------------------------------------------------------------------------------------------------------
@server.post("/", stream=True)
async def classify(request: Request) -> HTTPResponse:
    """Classify the image in the body: JSON, the bytes of an image file, or a form with the field `image`."""
    return await run_inference(request)


@server.post("/invocations", stream=True)
async def invocations(request: Request) -> HTTPResponse:
    """The same as POST /, where SageMaker expects it."""
    return await run_inference(request)


@server.route("/", **GET)  # type: ignore[arg-type]  # Sanic's hints bar stacked routes
@server.route(r"/page/<name:(style\.css|script\.js)>", name="page_files", **GET)
async def show_page(request: Request, name: str = "index.html") -> HTTPResponse:
    """The page for a browser, its style, its script. They need no key; the page asks for the one its requests need."""
    # Not Sanic's static(), which would keep a body that comes with a GET in memory.
    return await file(SERVING / "page" / name, headers={"Content-Security-Policy": PAGE_POLICY}, no_store=True)


@server.route("/healthcheck", **GET)
async def healthcheck(request: Request) -> HTTPResponse:
    """Banana's health check: if the model works, 200 and what runs here; otherwise 503."""
    await request.app.ctx.lifecycle.require_healthy()
    return json({"state": "healthy"} | request.app.ctx.backend.status())


@server.route("/_k/warmup", methods=["GET", "HEAD", "POST"], ignore_body=True, error_format="json")
async def warmup(request: Request) -> HTTPResponse:
    """The route of banana_dev's Client.warmup(): 200 once the model is loaded, otherwise 503."""
    request.app.ctx.lifecycle.require_ready()
    return json({"warm": True})


@server.route("/metrics", **GET)
async def metrics(request: Request) -> HTTPResponse:
    """Metrics for Prometheus."""
    return HTTPResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)


@server.route("/openapi.json", **GET)
async def openapi(request: Request) -> HTTPResponse:
    """The machine-readable description of these routes; a new route must be described there."""
    return HTTPResponse((SERVING / "openapi.json").read_bytes(), content_type="application/json")


@server.route("/ping", **GET)
async def ping(request: Request) -> HTTPResponse:
    """200 while the model works; 204 while it loads, as RunPod expects and SageMaker accepts; otherwise 503."""
    lifecycle = request.app.ctx.lifecycle
    if lifecycle.state is State.LOADING:
        return HTTPResponse(status=204)
    await lifecycle.require_healthy()
    return json({"state": "healthy"})


@server.route("/_k/status", **GET)  # type: ignore[arg-type]
@server.route("/__status__", name="status_alias", **GET)
async def status(request: Request) -> HTTPResponse:
    """The status of Potassium, Banana's framework: free or not, requests processed, milliseconds idle or working."""
    queue, state = request.app.ctx.queue, request.app.ctx.lifecycle.state
    is_free = state is State.READY and len(queue.pending) < queue.threads  # pending: waiting or running
    since_ms = int((monotonic() - queue.last_change) * 1e3)
    idle_ms, working_ms = (0, since_ms) if queue.pending else (since_ms, 0)
    fields = {"gpu_available": is_free, "sequence_number": queue.finished}
    return json(fields | {"idle_time": idle_ms, "inference_time": working_ms})


# -- startup and shutdown ------------------------------------------------------------------------------------------
def main(backend: Any, loading: Future) -> None:
    """Serve until SIGTERM; exit 1 if the model cannot be loaded, or if requests were left unfinished.

    `backend` is app.py, or any other object with its `init`, `inference`, `status`, `warm_up` and `WORKERS`.
    """
    ctx, host, port = server.ctx, SETTINGS.HOST, SETTINGS.PORT
    ctx.backend = backend
    ctx.queue = WorkQueue(backend.WORKERS, SETTINGS.MAX_QUEUE)
    ctx.lifecycle = Lifecycle(server, backend, ctx.queue, loading, SETTINGS)
    ctx.bodies = BodyReader(SETTINGS.MAX_BODY_MB * 1_000_000, SETTINGS.REQUEST_TIMEOUT_S)
    os.environ["SANIC_IGNORE_PRODUCTION_WARNING"] = "true"  # hides a colored line that suggests --debug
    server.after_server_start(lambda _: ctx.lifecycle.start())  # handles signals; Sanic would miss early ones
    # Until then, Ctrl-C exits here; Sanic would log a traceback.
    signal.signal(signal.SIGINT, lambda *_: runtime.startup_errors.exit_interrupted())
    try:
        # The protocol closes connections whose data trickles in. The backlog: connections not accepted yet.
        server.run(host, port, protocol=DeadlineProtocol, backlog=1024, single_process=True, register_sys_signals=False)
    except OSError as error:
        sys.exit(f"server.py: cannot listen on {host}:{port}: {error.strerror}")
    if pending := ctx.lifecycle.unfinished:
        logger.error("not finished", extra={"fields": {"pending": pending, "grace_s": SETTINGS.SHUTDOWN_GRACE_S}})
        os._exit(1)  # a normal exit would wait for the threads that are still running
    sys.exit(1 if loading.exception() else 0)


if __name__ == "__main__":
    main(app, loading)
