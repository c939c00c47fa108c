"""Base64 as people write it: in lines, in a data URL, in the alphabet of URLs, with or without its padding."""

from pybase64 import b64decode

BLANKS = b" \t\r\n"


class InvalidBase64(ValueError):
    """The text is no base64; the message says why."""


def decode_base64(text: str) -> bytes:
    """Return what the text holds. Raises InvalidBase64."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    alphabet_of_urls = "-_" if "-" in text or "_" in text else None
    try:
        return b64decode(text, alphabet_of_urls, validate=True, ignorechars=BLANKS, padded="=" in text)
    except ValueError as error:
        raise InvalidBase64(f"a picture is not base64: {error}") from error
