"""What every request goes through: the key, the headers, errors as JSON, the log."""

import asyncio
import hmac

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import BadRequest, RequestCancelled, Unauthorized
from sanic.response import json

from runtime.errors import InvalidInput, Unavailable
from runtime.settings import ServerSettings
from serving import platforms
from serving.log import logger
from serving.metrics import get_request_id, record

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
# Those who probe have no key, nor has a browser that asks for the page's files.
PUBLIC_PATHS = {"/healthcheck", "/page/style.css", "/page/script.js", *platforms.PROBES}


def install(server: Sanic, settings: ServerSettings) -> None:
    """Have every request go through the functions below, in this order."""
    server.ctx.settings = settings
    server.ctx.headers = dict(HEADERS)
    if settings.CORS_ORIGIN:
        server.ctx.headers |= {
            "Access-Control-Allow-Headers": "Authorization, Content-Type, Inference-Header-Content-Length, "
            "X-Banana-API-Key, X-Banana-Request-ID",
            "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS, POST",
            "Access-Control-Expose-Headers": "Inference-Header-Content-Length, Retry-After, X-Request-ID",
            "Access-Control-Allow-Origin": settings.CORS_ORIGIN,
            "Access-Control-Max-Age": "600",
            "Vary": "Origin",
        }
    for function in (yield_to_event_loop, authenticate, drop_body):
        server.on_request(function)
    server.exception(Exception, RequestCancelled)(on_error)  # type: ignore[arg-type]
    server.on_response(add_headers_and_record)


async def yield_to_event_loop(request: Request) -> None:
    """Let other connections have theirs: Sanic works without a pause through all requests that one has sent."""
    await asyncio.sleep(0)


async def authenticate(request: Request) -> None:
    """Refuse a call without the key, where one is set; probes, browsers' preflights and the page's have none."""
    key = request.app.ctx.settings.BANANA_API_KEY
    is_page = request.path == "/" and request.method in ("GET", "HEAD")
    unread = not request.head  # nor a key in it: it is told so
    if not key or unread or is_page or request.path in PUBLIC_PATHS or request.method == "OPTIONS":
        return
    sent = request.headers.get("X-Banana-API-Key") or request.token or ""
    if not hmac.compare_digest(sent.encode(errors="replace"), key.encode()):
        raise Unauthorized("send the API key of this endpoint as X-Banana-API-Key", scheme="Bearer")


async def drop_body(request: Request) -> None:
    """Read past the body of a request that needs none: Sanic would keep it in memory, or log an error."""
    if request.method == "OPTIONS" or (request.route and request.route.extra.ignore_body):
        async for _ in request.stream:
            pass


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
        message += platforms.V2_ROUTES if is_v2 else "POST a picture to /"
    if code == 503:
        message += ": try again"
        headers["Retry-After"] = "1"
    if code == 408 or lifecycle.stopping:
        request.stream.keep_alive = False
    message = message.encode(errors="backslashreplace").decode()  # a method may hold bytes that are no text
    answer = {"type": ERROR_TYPES.get(code, "error"), "message": message}
    return json({"error": message if is_v2 else answer}, code, headers)


async def add_headers_and_record(request: Request, response: HTTPResponse) -> None:
    """Add the headers that every answer has, count it, and write its line in the log."""
    for name, value in request.app.ctx.headers.items():
        response.headers.setdefault(name, value)  # the page has a policy of its own
    response.headers["X-Request-ID"] = get_request_id(request)
    record(request, response.status)
