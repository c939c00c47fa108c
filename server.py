"""HTTP around app.py: routes, limits, authentication, health, shutdown.

    python server.py                      # http://127.0.0.1:8000
    PORT=9000 BANANA_API_KEY=secret python server.py

Knows nothing of ONNX or of image formats. A call's work is done in a thread, so that the event loop always answers.
"""

import asyncio
import hmac
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic

import orjson
from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import SanicException

import app
from app import InvalidInput
from model import InvalidModel
from settings import integer

# -- settings, from the environment --------------------------------------------------------------------------------
HOST = os.environ.get("HOST") or "0.0.0.0"  # the address to listen on
PORT = integer("PORT", 8000, 1, 65_535)
BANANA_API_KEY = os.environ.get("BANANA_API_KEY")  # what callers have to send; unset: open to everyone
MAX_BODY_MB = integer("MAX_BODY_MB", 20, 1, 1024)  # of one request, in units of 1,000,000 bytes
MAX_QUEUE = integer("MAX_QUEUE", 64, 0, 100_000)  # calls that may wait while another is in work
SHUTDOWN_GRACE_S = integer("SHUTDOWN_GRACE_S", 10, 0, 3600)  # seconds that work may take to finish after SIGTERM
# ------------------------------------------------------------------------------------------------------------------

BODY_TIMEOUT_S = 30  # from a request's first byte to its last
ANSWER_TIMEOUT_S = 60  # from a request's first byte to its answer
IDLE_TIMEOUT_S = 15  # of a connection between requests
QUIET_S = 0.5  # without a call, after which a server that is stopping takes its clients to have gone

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

logger = logging.getLogger("server")
server = Sanic("classifier", configure_logging=False)
server.config.MOTD = False
server.config.ACCESS_LOG = False
server.config.REQUEST_TIMEOUT = BODY_TIMEOUT_S
server.config.RESPONSE_TIMEOUT = ANSWER_TIMEOUT_S
server.config.KEEP_ALIVE_TIMEOUT = IDLE_TIMEOUT_S
# read_body has the limit: Sanic's own closes the connection on a client that is still sending, which then never
# reads the 413. What is left of a refused body is read and dropped until IDLE_TIMEOUT_S.
server.config.REQUEST_MAX_SIZE = sys.maxsize


class Refusal(SanicException):
    """An answer other than 200; `status_code` is one of ERROR_TYPES and the message says what to do about it."""

    quiet = True


class Unavailable(Refusal):
    """The server cannot take the call now."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}: try again", 503, headers={"Retry-After": "1"})


@dataclass
class State:
    """What the routes tell each other; touched in the event loop only."""

    pool: ThreadPoolExecutor
    ready: bool = False  # the model has answered its first picture
    failed: bool = False  # the model cannot be loaded
    stopping: bool = False  # new work is refused
    pending: int = 0  # calls in work or waiting
    answered: int = 0
    last_call: float = 0.0  # monotonic seconds at which one last came in
    last_change: float = 0.0  # monotonic seconds at which one last was taken on or answered


@server.before_server_start
async def start(server: Sanic) -> None:
    """Load the model in a thread: the port answers 503 until it is there."""
    server.ctx.state = State(ThreadPoolExecutor(1, "inference"), last_change=monotonic())
    server.ctx.loading = asyncio.create_task(load(server))


@server.after_server_start
async def obey_signals(server: Sanic) -> None:
    """Stop on SIGTERM and Ctrl-C. Not earlier: Sanic sets both to be ignored just before."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, server)


async def load(server: Sanic) -> None:
    """Make the server ready, or stop it if the model cannot be loaded."""
    state = server.ctx.state
    try:
        await asyncio.get_running_loop().run_in_executor(state.pool, app.init)
    except InvalidModel as error:
        logger.error("%s", error)
        state.failed = True
        await leave(server)
    else:
        state.ready = True
        logger.info("ready: %s", app.status())


def stop(server: Sanic) -> None:
    """Stop when all work is done; at a second signal, at once."""
    state = server.ctx.state
    if state.stopping:
        server.stop()
    state.stopping = True
    logger.info("stopping: %d calls to finish", state.pending)
    server.ctx.draining = asyncio.create_task(drain(server))


async def drain(server: Sanic) -> None:
    """Go on refusing calls until the work is finished and the callers have seen a 503 and gone; then stop.

    A socket that is closed while a request is on its way resets that request.
    """
    state = server.ctx.state
    deadline = monotonic() + SHUTDOWN_GRACE_S
    while monotonic() < deadline and (state.pending or monotonic() < state.last_call + QUIET_S):
        await asyncio.sleep(0.02)
    await leave(server)


async def leave(server: Sanic) -> None:
    """Stop serving. Sanic loses a stop that comes before it serves."""
    while not server.state.is_running:
        await asyncio.sleep(0.02)
    server.stop()


@server.on_request
async def authenticate(request: Request) -> None:
    """Refuse a call without the key, where one is set; /healthcheck is for probes, which have none."""
    if not BANANA_API_KEY or request.path == "/healthcheck":
        return
    given = request.headers.get("X-Banana-API-Key") or request.token or ""
    if not hmac.compare_digest(given.encode(errors="replace"), BANANA_API_KEY.encode()):
        raise Refusal("send the API key of this endpoint as X-Banana-API-Key", 401)


@server.post("/", stream=True)
async def classify(request: Request) -> HTTPResponse:
    """Classify what the body holds: JSON, a picture's own bytes, or a form with the field `image`."""
    state = request.app.ctx.state
    state.last_call = monotonic()
    require_ready(request)
    body = await read_body(request)
    require_ready(request)
    if state.pending > MAX_QUEUE:
        raise Unavailable(f"{MAX_QUEUE} calls are waiting already")
    state.pending += 1
    state.last_change = monotonic()
    try:
        work = asyncio.get_running_loop().run_in_executor(state.pool, answer, request, body)
        return respond(await work)
    except InvalidInput as error:
        raise Refusal(str(error), 422) from error
    finally:
        state.pending -= 1
        state.answered += 1
        state.last_change = monotonic()


@server.get("/healthcheck")
async def healthcheck(request: Request) -> HTTPResponse:
    """Banana's probe: 200 when the model answers, with what runs here."""
    require_ready(request)
    return respond(orjson.dumps({"state": "healthy"} | app.status()))


@server.post("/_k/warmup", ignore_body=True)
async def warmup(request: Request) -> HTTPResponse:
    """What banana_dev's Client.warmup() calls: the model is loaded and warm, or this is a 503."""
    require_ready(request)
    return respond(orjson.dumps({"warm": True}))


@server.get("/_k/status")
async def status(request: Request) -> HTTPResponse:
    """Potassium's status: whether a call would start at once, how many were answered, and for how long idle or busy."""
    state = request.app.ctx.state
    since_ms = int((monotonic() - state.last_change) * 1e3)
    busy = state.pending > 0
    answer = {
        "gpu_available": state.ready and not busy,
        "sequence_number": state.answered,
        "idle_time": 0 if busy else since_ms,
        "inference_time": since_ms if busy else 0,
    }
    return respond(orjson.dumps(answer))


@server.exception(Exception)
async def on_error(request: Request, error: Exception) -> HTTPResponse:
    """Answer any error as JSON. Never 400: banana-dev takes that for "over quota" and repeats the call for minutes."""
    code = getattr(error, "status_code", 500)
    code = 422 if code == 400 else code
    message = str(error)
    if code == 500:
        logger.error("%s %s failed", request.method, request.path, exc_info=error)
        message = "the server failed; its log says why"
    if code in (404, 405):
        message = f"{request.method} {request.path} is not served here: POST a picture to /"
    body = {"error": {"type": ERROR_TYPES.get(code, "error"), "message": message}}
    return respond(orjson.dumps(body), code, getattr(error, "headers", None))


def respond(body: bytes, code: int = 200, headers: dict | None = None) -> HTTPResponse:
    """Return `body`, which is JSON already, as a response."""
    return HTTPResponse(body, code, headers, "application/json")


def require_ready(request: Request) -> None:
    """Raise Unavailable before the model has answered its first picture, and after SIGTERM."""
    state = request.app.ctx.state
    if state.stopping:
        request.stream.keep_alive = False
        raise Unavailable("the server is stopping")
    if not state.ready:
        raise Unavailable("the model is loading")


async def read_body(request: Request) -> bytes:
    """Return the request's body. Raises Refusal as soon as it is known to be over the limit."""
    limit = MAX_BODY_MB * 1_000_000
    length = request.headers.get("content-length", "0")
    chunks, received = [], int(length) if length.isdigit() else 0
    if received <= limit:
        received = 0
        async for chunk in request.stream:
            chunks.append(chunk)
            received += len(chunk)
            if received > limit:
                break
    if received > limit:
        raise Refusal(f"the request is over {MAX_BODY_MB} MB: send a smaller picture", 413)
    return b"".join(chunks)


def answer(request: Request, body: bytes) -> bytes:
    """Return the JSON answer to a call, in the worker's thread. Raises InvalidInput."""
    return orjson.dumps(app.inference(inputs_of(request, body)))


def inputs_of(request: Request, body: bytes) -> dict:
    """Return a call's inputs, whichever way they were sent. Raises InvalidInput."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return {"image": body} | options_of(request.args)
    if kind == "multipart/form-data":
        request.body = body
        files = request.files.getlist("image") or []
        if len(files) != 1:
            raise InvalidInput("expected a form with one file in the field `image`")
        return {"image": files[0].body} | options_of(request.args) | options_of(request.form)
    try:
        inputs = orjson.loads(body)
        # Some of Banana's callers encode twice.
        return orjson.loads(inputs) if isinstance(inputs, str) else inputs
    except orjson.JSONDecodeError as error:
        raise InvalidInput(
            f'not JSON ({error}): send {{"image": "<base64>"}}, or the bytes of the picture with its Content-Type'
        ) from error


def options_of(fields: dict) -> dict:
    """Return the options among a query's or a form's fields, which are all text, as JSON would have them."""
    options = {}
    for name in ("top_k", "probabilities"):
        if name in fields:
            text = fields.get(name)
            options[name] = int(text) if text.isdigit() else {"true": True, "false": False}.get(text, text)
    return options


def main() -> None:
    """Serve until SIGTERM; exit 1 if the model cannot be loaded, or if work was left unfinished."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("sanic").setLevel(logging.WARNING)
    try:
        server.run(HOST, PORT, single_process=True, access_log=False, register_sys_signals=False)
    except OSError as error:
        sys.exit(f"server.py: cannot listen on {HOST}:{PORT}: {error.strerror}")
    state = server.ctx.state
    if state.pending:
        logger.error("%d calls were not finished within %d s", state.pending, SHUTDOWN_GRACE_S)
        os._exit(1)  # sys.exit would wait for the thread that is still at work
    sys.exit(1 if state.failed else 0)


if __name__ == "__main__":
    main()
