"""The inputs of a request, whichever way the picture was sent."""

import io
from collections.abc import Mapping
from typing import Any

import msgspec

from runtime.base64_text import decode_base64
from runtime.errors import InvalidInput
from serving.bounded_lists import at_most, list_items

MAX_FORM_PARTS = 16
MAX_TEXTS = 1024  # texts in a list of a JSON body; the most that MAX_IMAGES in runtime/settings.py may be
OPTIONS = ("top_k", "probabilities")
COMPRESSED = "the request is compressed: send it as it is"
NULL = msgspec.Raw(b"null")


class _Inputs(msgspec.Struct):
    """The fields of a JSON body that are read; any other is skipped without being built in memory.

    Null is as if the field were not there: so clients write what was not set.
    """

    image: str | None = None
    images: msgspec.Raw = NULL  # may be there a million times: only the last is decoded
    top_k: int | None = None
    probabilities: bool | None = None


_decode = msgspec.json.Decoder(_Inputs | str).decode


def parse_inputs(content_type: str, body: bytes, query: Mapping[str, Any]) -> dict:
    """Return a call's inputs as app.inference takes them. Raises InvalidInput.

    A picture's own bytes are known by their Content-Type; anything else that is no form is taken for JSON.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind in ("application/octet-stream", "application/x-image"):
        return {"image": body} | _options(query)
    if kind == "multipart/form-data":
        return _options(query) | _form(content_type, body)
    if body.startswith(b"\x1f\x8b"):  # gzip, of a client that does not say so
        raise InvalidInput(COMPRESSED)
    try:
        return _options(query) | _json(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = "not the JSON that is expected" if isinstance(error, msgspec.ValidationError) else "not JSON"
        why = str(error).replace(" | null", "").replace("Expected `str`", "Expected base64")
        hint = 'send {"image": "<base64>"}, or the bytes of the picture with its Content-Type'
        raise InvalidInput(f"{what} ({why}): {hint}") from error


def _json(body: bytes) -> dict:
    inputs = _decode(body)
    if isinstance(inputs, str):  # some of Banana's callers encode twice
        inputs = inputs.encode(errors="replace")  # in place of the text, which may be four times as large
        inputs = _decode(inputs)
    if isinstance(inputs, str):
        raise msgspec.ValidationError("a text")
    fields = {name: value for name, value in msgspec.structs.asdict(inputs).items() if value not in (None, NULL)}
    if "image" in fields:
        fields["image"] = decode_base64(fields["image"])
    if "images" in fields:
        texts = msgspec.json.decode(fields["images"], type=at_most(MAX_TEXTS, str))
        fields["images"] = [decode_base64(text) for text in list_items(texts)]
    return fields


def _form(content_type: str, body: bytes) -> dict:
    from multipart import MultipartError, MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get("boundary", "")
    limits = {"part_limit": MAX_FORM_PARTS, "spool_limit": len(body) + 1, "memory_limit": len(body) + 1}  # no disk
    try:
        parts = list(MultipartParser(io.BytesIO(body), boundary, **limits))
        pictures = [part.raw for part in parts if part.name == "image"]
        # Not part.value, which heeds a charset that the caller names: of Punycode a megabyte takes minutes.
        fields = {part.name: part.raw.decode(errors="replace") for part in parts if part.name in OPTIONS}
    except (MultipartError, ValueError) as error:
        raise InvalidInput(f"not a form that can be read: {error}") from error
    if len(pictures) != 1:
        raise InvalidInput("expected a form with one file in the field `image`")
    return {"image": pictures[0]} | _options(fields)


def _options(fields: Mapping[str, Any]) -> dict:
    """Return the options among a query's or a form's fields, which are all text, as JSON would have them."""
    options: dict[str, Any] = {}
    for name in OPTIONS:
        if name in fields:
            text = str(fields.get(name))
            is_number = text.isascii() and text.isdigit() and len(text) < 10
            options[name] = int(text) if is_number else {"true": True, "false": False}.get(text, text)
    return options
