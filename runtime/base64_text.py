"""Base64 as people write it: in lines, in a data URL, in the alphabet of URLs, with or without its padding."""

from pybase64 import b64decode

from runtime.errors import InvalidInput


def decode_base64(text: str) -> bytes:
    """Return what the text holds. Raises InvalidInput."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    alphabet_of_urls = "-_" if "-" in text or "_" in text else None
    try:
        return b64decode(text, alphabet_of_urls, validate=True, ignorechars=b" \t\r\n", padded="=" in text)
    except ValueError as error:
        raise InvalidInput(f"a picture is not base64: {error}") from error
