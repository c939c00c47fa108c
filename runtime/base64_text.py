"""Base64 as people send it: in lines, in a data URL, percent-encoded, as Python prints it, or encoded twice."""

import re

from pybase64 import b64decode

from runtime.errors import InvalidInput

# How the base64 of a JPEG, PNG, GIF, WebP or BMP file begins, or a data URL of an image; then the base64 of these.
BASE64_IMAGE = re.compile(
    rb"\s*+(?:b['\"])?(?:(?i:data:image/)|(?:/|%2[Ff])9j(?:/|%2[Ff])|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-3]"
    rb"|ZGF0YTppbWFnZS|LzlqLz|aVZCT1J3MEtHZ2|UjBsR09E|VWtsR1|UWs[w-z])"
)
# Replaced one by one: urllib's unquote makes an object of each escape, and there may be millions.
ESCAPES = {"%2B": "+", "%2F": "/", "%3D": "=", "%0A": "", "%0D": ""}


def decode_base64(text: str, may_be_twice: bool = True) -> bytes:
    """Return the bytes that the text holds. Raises InvalidInput, whose message says what it is instead."""
    text = text.strip()
    if re.match("[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise InvalidInput("URLs are not fetched: send the image itself")
    if text[:5].lower() == "data:":
        text = text.partition(",")[2].strip()
    elif text[:2] in ("b'", 'b"') and text[-1] == text[1]:  # what Python prints
        text = text[2:-1].replace("\\n", "")
    if "%" in text:
        for escape, character in ESCAPES.items():
            text = text.replace(escape, character).replace(escape.lower(), character)
    if " " in text:  # dropping them would decode to another image
        raise InvalidInput('blanks within base64: a form turns "+" into blanks unless it is sent as %2B')
    alphabet_of_urls = "-_" if "-" in text or "_" in text else None
    try:
        content = b64decode(text, alphabet_of_urls, validate=True, ignorechars=b"\t\r\n", padded="=" in text)
    except ValueError as error:
        raise InvalidInput(f"not base64 ({error}): send the image as base64, or its file as the body") from error
    if may_be_twice and BASE64_IMAGE.match(content):
        return decode_base64(content.decode("latin-1"), may_be_twice=False)
    return content
