"""Types of JSON lists that stop decoding at the first item too many.

msgspec's own limit, Meta(max_length=...), is checked after the whole list was decoded: 20 MB of `{},` become 700 MB
first. A struct with one optional field per item, decoded from a JSON array, has no room for another.
"""

from functools import cache

import msgspec


@cache  # making the type of a list of 1,024 items takes a while: only when it is needed, and once
def at_most(count: int, item: type) -> type[msgspec.Struct]:
    """Return the type of a JSON list of at most `count` items; `list_items` returns them."""
    fields = [(f"item{n}", item, msgspec.UNSET) for n in range(count)]
    return msgspec.defstruct(f"AtMost{count}", fields, array_like=True, forbid_unknown_fields=True)


def list_items(bounded: msgspec.Struct) -> list:
    """Return the items of a list that was decoded as `at_most(...)`."""
    return [item for item in msgspec.structs.astuple(bounded) if item is not msgspec.UNSET]
