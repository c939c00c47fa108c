"""JSON lists whose decoding stops at the first item too many.

msgspec's own limit, Meta(max_length=...), is checked after the whole list was decoded: 20 MB of `{},` become 700 MB
first. A struct with one optional field per item, decoded from a JSON array, has no room for another.
"""

from functools import cache
from typing import Any

import msgspec

NULL = msgspec.Raw(b"null")


@cache  # making the type of a list of 1,024 items takes a while: only when it is needed, and once
def _decoder(count: int, item: Any) -> msgspec.json.Decoder:
    fields = [(f"item{n}", item, msgspec.UNSET) for n in range(count)]
    return msgspec.json.Decoder(msgspec.defstruct("Items", fields, array_like=True, forbid_unknown_fields=True))


def decode_list(name: str, text: msgspec.Raw, count: int, item: Any) -> list:
    """Return the field `name`: a list of at most `count` items of a type, empty if null. Raises ValidationError."""
    if text == NULL:
        return []
    try:
        items = msgspec.structs.astuple(_decoder(count, item).decode(text))
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error}, in `{name}`") from error
    return [item for item in items if item is not msgspec.UNSET]
