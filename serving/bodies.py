"""Reading a request: in bounded time and memory, and whichever way the picture was sent.

Knows nothing of pictures but their Content-Type.
"""

import asyncio
import io
from collections.abc import Mapping
from typing import Any

import msgspec
from sanic import Request

MAX_FORM_PARTS = 16
OPTIONS = ("top_k", "probabilities")
BODIES_IN_MEMORY = 8  # of the largest size, over all connections


class InvalidBody(ValueError):
    """The body holds no inputs; the message says what to send instead."""


class BodyTooLarge(ValueError):
    """The body is over the limit of one request."""


class TooManyBodies(Exception):
    """The bodies of all connections together are over what may be in memory."""


def content_length(request: Request) -> int:
    """Return the length that the request's header gives, or 0 where it gives none; beyond 10^19, some such number."""
    digits = request.headers.get("content-length", "")
    # Python refuses to convert thousands of digits.
    return int(digits.lstrip("0")[:20] or 0) if digits.isascii() and digits.isdigit() else 0


class BodyReader:
    """Reads bodies of at most `limit` bytes, and of BODIES_IN_MEMORY times that over all connections."""

    def __init__(self, limit: int, timeout_s: float) -> None:
        self.limit = limit
        self.timeout_s = timeout_s
        self.held = 0  # bytes, over all connections

    async def read(self, request: Request) -> bytes:
        """Return the body; `release` it afterwards. Raises BodyTooLarge, TooManyBodies or TimeoutError.

        Too large is known from the header where the length is there, and else as soon as it is.
        """
        if content_length(request) > self.limit:
            raise BodyTooLarge
        body = bytearray()  # a list of chunks would be many times as large where each is a byte or two
        try:
            async with asyncio.timeout(self.timeout_s):
                async for chunk in request.stream:
                    body += chunk
                    self.held += len(chunk)
                    if len(body) > self.limit:
                        raise BodyTooLarge
                    if self.held > self.limit * BODIES_IN_MEMORY:
                        raise TooManyBodies
        except BaseException:
            self.held -= len(body)
            raise
        if not request.transport.is_closing():
            request.transport.resume_reading()  # Sanic may have paused it, and would not see the client go
        return bytes(body)

    def release(self, body: bytes) -> None:
        """Say that the body is no longer needed."""
        self.held -= len(body)


class _Inputs(msgspec.Struct):
    """The fields of a JSON body that are read; any other is skipped without being built in memory."""

    image: bytes | msgspec.UnsetType = msgspec.UNSET
    images: list[bytes] | msgspec.UnsetType = msgspec.UNSET
    top_k: int | msgspec.UnsetType = msgspec.UNSET
    probabilities: bool | msgspec.UnsetType = msgspec.UNSET


class _TextInputs(_Inputs):
    """The same with pictures as they stand: base64 in a data URL or broken into lines is for app.py to read."""

    image: str | msgspec.UnsetType = msgspec.UNSET
    images: list[str] | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Inputs | str).decode
_decode_text = msgspec.json.Decoder(_TextInputs).decode


def inputs_of(content_type: str, body: bytes, query: Mapping[str, Any]) -> dict:
    """Return a call's inputs as app.inference takes them. Raises InvalidBody.

    A picture's own bytes are known by their Content-Type; anything else that is no form is taken for JSON.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind in ("application/octet-stream", "application/x-image"):
        return {"image": body} | _options(query)
    if kind == "multipart/form-data":
        return _options(query) | _form(content_type, body)
    try:
        return _json(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = "not the JSON that is expected" if isinstance(error, msgspec.ValidationError) else "not JSON"
        why = str(error).replace("`bytes`", "base64")
        hint = 'send {"image": "<base64>"}, or the bytes of the picture with its Content-Type'
        raise InvalidBody(f"{what} ({why}): {hint}") from error


def _json(body: bytes) -> dict:
    try:
        inputs = _decode(body)
        if isinstance(inputs, str):  # some of Banana's callers encode twice
            body = inputs.encode(errors="replace")
            inputs = _decode(body)
    except msgspec.ValidationError as error:
        if "base64" not in str(error):
            raise
        inputs = _decode_text(body)
    if isinstance(inputs, str):
        raise msgspec.ValidationError("a text")
    return {name: value for name, value in msgspec.structs.asdict(inputs).items() if value is not msgspec.UNSET}


def _form(content_type: str, body: bytes) -> dict:
    from multipart import MultipartError, MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get("boundary", "")
    whole = len(body) + 1  # nothing is spooled to disk
    try:
        parts = list(
            MultipartParser(
                io.BytesIO(body), boundary, part_limit=MAX_FORM_PARTS, spool_limit=whole, memory_limit=whole
            )
        )
        pictures = [part.raw for part in parts if part.name == "image"]
        # Not part.value, which heeds a charset that the caller names: of Punycode a megabyte takes minutes.
        fields = {part.name: part.raw.decode(errors="replace") for part in parts if part.name in OPTIONS}
    except (MultipartError, ValueError) as error:
        raise InvalidBody(f"not a form that can be read: {error}") from error
    if len(pictures) != 1:
        raise InvalidBody("expected a form with one file in the field `image`")
    return {"image": pictures[0]} | _options(fields)


def _options(fields: Mapping[str, Any]) -> dict:
    """Return the options among a query's or a form's fields, which are all text, as JSON would have them."""
    options: dict[str, Any] = {}
    for name in OPTIONS:
        if name in fields:
            text = fields.get(name)
            is_number = text.isascii() and text.isdigit() and len(text) < 10
            options[name] = int(text) if is_number else {"true": True, "false": False}.get(text, text)
    return options
