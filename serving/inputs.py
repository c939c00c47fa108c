"""The inputs of a request, whichever way the image was sent."""

import io
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from runtime.base64_text import BASE64_IMAGE, decode_base64
from runtime.errors import InvalidInput
from runtime.image_formats import KNOWN

MAX_FORM_PARTS = 16
MAX_COMMAS = 2 * 1024  # in a list of texts: one between each two, and one in each data URL
OPTIONS = ("top_k", "probabilities")
NULL = msgspec.Raw(b"null")


class _Inputs(msgspec.Struct):
    """The fields of a JSON body that are read, unless they are null; others are skipped without using memory."""

    image: str | None = None
    images: msgspec.Raw = NULL  # decoded afterwards, and so only once even if it occurs a million times
    top_k: int | None = None
    probabilities: bool | None = None


def parse_inputs(content_type: str, body: bytes, query: Mapping[str, Any]) -> dict:
    """Return a request's inputs as app.inference accepts them. Raises InvalidInput.

    A body that begins like a file is one, whatever its Content-Type. Otherwise that says whether it is an image or a
    form, and any other body is JSON, or an image in base64.
    """
    kind = content_type.partition(";")[0].strip().lower()
    is_image = kind.startswith("image/") or kind.endswith("/octet-stream") or kind == "application/x-image"
    if is_image or KNOWN.match(body) or BASE64_IMAGE.match(body):
        return {"image": _content(body)} | _options(query)
    if kind == "multipart/form-data":
        return _options(query) | _form(content_type, body)
    if kind == "application/x-www-form-urlencoded" and re.search(rb"(?:^|&)image=", body):
        fields = dict(part.partition("=")[::2] for part in body.decode("latin-1").split("&", MAX_FORM_PARTS))
        # A "+" stays one: base64 has no blanks that it could stand for.
        return {"image": decode_base64(fields.pop("image", ""))} | _options(query) | _options(fields)
    try:
        return _options(query) | _json(body.removeprefix(b"\xef\xbb\xbf"))  # a byte order mark
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = "not the JSON that is expected" if isinstance(error, msgspec.ValidationError) else "not JSON"
        why = str(error).replace(" | null", "").replace("Expected `str`", "Expected base64")
        raise InvalidInput(f'{what} ({why}): send {{"image": "<base64>"}}, or the bytes of the image') from error


def _content(data: bytes) -> bytes:
    """Return the file in a body or in a form's field, which may be in base64."""
    return decode_base64(data.decode("latin-1")) if BASE64_IMAGE.match(data) else data


def decode_list(text: msgspec.Raw, kind: Any) -> Any:
    """Return a list of type `kind`, which is not decoded if it is too long. Raises msgspec.ValidationError.

    msgspec's own limit, Meta(max_length=...), comes too late: 20 MB of `{},` become 700 MB before it is checked.
    """
    if bytes(text).count(b",") > MAX_COMMAS:
        raise msgspec.ValidationError("too many items in a list")
    return msgspec.json.decode(text, type=kind)


def _json(body: bytes) -> dict:
    if body.lstrip().startswith(b'"'):  # some of Banana's clients encode twice
        body = msgspec.json.decode(body, type=str).encode(errors="replace")
    inputs = msgspec.structs.asdict(msgspec.json.decode(body, type=_Inputs))
    fields = {name: value for name, value in inputs.items() if value not in (None, NULL)}
    if "image" in fields:
        fields["image"] = decode_base64(fields["image"])
    if "images" in fields:
        fields["images"] = [decode_base64(text) for text in decode_list(fields["images"], list[str])]
    return fields


def _form(content_type: str, body: bytes) -> dict:
    from multipart import MultipartError, MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get("boundary", "")
    limits = {"part_limit": MAX_FORM_PARTS, "spool_limit": len(body) + 1, "memory_limit": len(body) + 1}  # no disk
    try:
        parts = list(MultipartParser(io.BytesIO(body), boundary, **limits))
        images = [part.raw for part in parts if part.name == "image"]
        # Not part.value, which uses the charset that a client names: a megabyte of Punycode takes minutes.
        fields = {part.name: part.raw.decode(errors="replace") for part in parts if part.name in OPTIONS}
    except (MultipartError, ValueError) as error:
        raise InvalidInput(f"the form cannot be read: {error}") from error
    if len(images) != 1:
        raise InvalidInput("expected a form with one file in the field `image`")
    return {"image": _content(images[0])} | _options(fields)


def _options(fields: Mapping[str, Any]) -> dict:
    """Return the options in the fields of a query or a form, which are text, with the types that JSON has."""
    options: dict[str, Any] = {}
    for name in fields.keys() & OPTIONS:
        text = str(fields.get(name))  # of a query, the first of that name
        is_number = re.fullmatch("[0-9]{1,9}", text)
        options[name] = int(text) if is_number else {"true": True, "false": False}.get(text, text)
    return options
