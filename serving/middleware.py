"""What every request passes through: the key, errors as JSON, headers, the log."""

import hmac
import re
from http import HTTPStatus
from time import perf_counter
from typing import Any
from uuid import uuid4

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import BadRequest, RequestCancelled, Unauthorized
from sanic.response import json

from runtime.errors import InvalidInput, Unavailable, release_frames
from runtime.settings import ServerSettings
from serving.lifecycle import State
from serving.log import logger
from serving.metrics import PHASES, REQUEST_SECONDS, REQUESTS, REQUESTS_IN_PROGRESS, REQUESTS_QUEUED

# No error is a 400, which Banana's client reads as "over quota" and retries for minutes. 499 is for the log only.
STATUSES = {InvalidInput: 422, BadRequest: 422, RequestCancelled: 499, Unavailable: 503}
# The `type` of an error; that of any other status is its name, such as "not_found".
TYPES = {408: "timeout", 413: "too_large", 422: "invalid_input", 499: "gone", 500: "internal_error", 503: "unavailable"}
HEADERS = {  # of every response
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
CORS_HEADERS = {  # of every response if CORS_ORIGIN is set
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Inference-Header-Content-Length, "
    "X-Banana-API-Key, X-Banana-Request-ID",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS, POST",
    "Access-Control-Expose-Headers": "Inference-Header-Content-Length, Retry-After, X-Request-ID",
    "Access-Control-Max-Age": "600",
    "Vary": "Origin",
}
# Probes send no key, nor does a browser for the page's files and the link on it.
PROBES = {"/healthcheck", "/ping", "/v2/health/live", "/v2/health/ready"}
PUBLIC_PATHS = PROBES | {"/page/style.css", "/page/script.js", "/openapi.json"}
V2_ROUTES = "GET /v2, /v2/health/live, /v2/health/ready, /v2/models/<name>[/versions/1][/ready], or POST .../infer"
# Options of a route without a body. error_format spares Sanic a search of each handler's source at startup.
GET: dict[str, Any] = {"methods": ["GET", "HEAD"], "ignore_body": True, "error_format": "json"}


def install(server: Sanic, settings: ServerSettings) -> None:
    """Have every request to the server pass through the functions below, in this order."""
    server.ctx.api_key = settings.BANANA_API_KEY
    cors = CORS_HEADERS | {"Access-Control-Allow-Origin": settings.CORS_ORIGIN} if settings.CORS_ORIGIN else {}
    server.ctx.headers = HEADERS | cors
    server.on_request(authenticate)
    server.on_request(drop_body)
    server.exception(Exception, RequestCancelled)(respond_to_error)  # type: ignore[arg-type]
    server.on_response(add_headers_and_record)
    REQUESTS_IN_PROGRESS.set_function(lambda: len(server.ctx.queue.running))
    REQUESTS_QUEUED.set_function(lambda: len(server.ctx.queue.pending) - len(server.ctx.queue.running))


async def authenticate(request: Request) -> None:
    """Raise Unauthorized unless the request has the key, or needs none."""
    key = request.app.ctx.api_key
    is_public = request.path in PUBLIC_PATHS or (request.path == "/" and request.method in ("GET", "HEAD"))
    is_preflight = request.method == "OPTIONS"  # browsers send those without a key
    is_malformed = not request.head  # Sanic could not parse it, nor its key: the response says so
    if not key or is_public or is_preflight or is_malformed:
        return
    bearer = re.sub(r"(?i)^bearer ", "", request.headers.get("Authorization", ""))
    sent = (request.headers.get("X-Banana-API-Key") or bearer).strip(" \t")
    if not hmac.compare_digest(sent.encode(errors="replace"), key.encode()):
        raise Unauthorized("send the API key of this endpoint as X-Banana-API-Key", scheme="Bearer")


async def drop_body(request: Request) -> None:
    """Read past the body of a request that needs none: Sanic would keep it in memory, or log an error."""
    if request.method == "OPTIONS" or (request.route and request.route.extra.ignore_body):
        async for _ in request.stream:
            pass


async def respond_to_error(request: Request, error: Exception) -> HTTPResponse:
    """Return any error as JSON."""
    known = (status for kind, status in STATUSES.items() if isinstance(error, kind))
    status = next(known, getattr(error, "status_code", 500))
    headers = dict(getattr(error, "headers", {}))
    if request.method == "OPTIONS" and status == 405:
        return HTTPResponse(None, 204, headers)  # Sanic names the methods in the header Allow
    is_v2 = f"{request.path}/".startswith("/v2/")  # where errors must have the Open Inference Protocol's form
    message = str(error)
    if status == 500:
        logger.error("failed", exc_info=error, extra={"fields": {"id": get_request_id(request)}})
        request.app.ctx.lifecycle.is_suspect = True
        message = "internal server error; see the server log"
    if status == 503:
        headers["Retry-After"] = "1"
        message += ": try again"
    if status in (404, 405) and not request.route:
        message = f"{request.method} {request.path} is not served here: {V2_ROUTES if is_v2 else 'POST an image to /'}"
    if status == 408 or request.app.ctx.lifecycle.state is State.STOPPING:
        request.stream.keep_alive = False
    release_frames(error)  # logged by now; a slow client must not keep them alive
    message = message.encode(errors="backslashreplace").decode()  # a method may hold bytes that are not text
    kind = TYPES.get(status) or HTTPStatus(status).name.lower()
    body = {"error": message if is_v2 else {"type": kind, "message": message}}
    return json(body, status, headers)


async def add_headers_and_record(request: Request, response: HTTPResponse) -> None:
    """Add the headers of every response, count the response, and write its line of the log."""
    for name, value in request.app.ctx.headers.items():
        response.headers.setdefault(name, value)  # the page sets another Content-Security-Policy
    response.headers["X-Request-ID"] = get_request_id(request)
    record(request, response.status)


def record(request: Request, status: int) -> None:
    """Count a response, and log its request with what the backend reports.

    The label `route` is the name of the function of a route that classifies, otherwise `other`; never a client's path.
    """
    route = request.route.handler.__name__ if request.route and request.route.extra.stream else "other"
    total_ms = round((perf_counter() - (request.stream.perft0 or perf_counter())) * 1e3, 1)
    REQUESTS.labels(status).inc()
    REQUEST_SECONDS.labels(route, status).observe(total_ms / 1e3)
    fields = {"id": get_request_id(request), "method": request.method, "path": request.path, "status": status}
    fields |= {"bytes": request.stream.request_bytes or 0, "total_ms": total_ms}
    if answer := getattr(request.ctx, "answer", None):  # set once inference has succeeded
        if images := [result["image"] for result in answer.get("results", [answer]) if "image" in result]:
            fields["images"] = [f"{image['format']} {image['width']}x{image['height']}" for image in images]
        timing = {"queue": round(request.ctx.queued_s * 1e3, 1)} | answer["timing_ms"]
        for name, seconds in PHASES.items():
            fields[f"{name}_ms"] = timing[name]
            seconds.observe(timing[name] / 1e3)
    logger.info("request", extra={"fields": fields})


def get_request_id(request: Request) -> str:
    """Return the client's X-Banana-Request-ID if it can be logged as it is, otherwise a new id for the request."""
    if not hasattr(request.ctx, "id"):
        sent = request.headers.get("X-Banana-Request-ID", "")
        request.ctx.id = sent if re.fullmatch(r"[\w.:-]{1,128}", sent, re.ASCII) else str(uuid4())
    return request.ctx.id
