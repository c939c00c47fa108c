"""JSON lists of bounded length, in bounded memory."""

from functools import cache

import msgspec


@cache  # and not made before it is used: of a thousand items it takes long to make
def at_most(count: int, item: type) -> type[msgspec.Struct]:
    """Return the type of a JSON list of at most `count` items; `list_items` returns them.

    Decoding stops at the first item too many; with Meta(max_length=...) 20 MB of `{}` would become 700 MB first.
    """
    fields = [(f"item{n}", item, msgspec.UNSET) for n in range(count)]
    return msgspec.defstruct(f"AtMost{count}", fields, array_like=True, forbid_unknown_fields=True)


def list_items(bounded: msgspec.Struct) -> list:
    """Return the items of a list that was decoded as `at_most`."""
    return [item for item in msgspec.structs.astuple(bounded) if item is not msgspec.UNSET]
