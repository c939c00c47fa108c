"""What an ONNX file says about itself, read without its weights.

A session says the same, but only once it is open, and how it is opened depends on the model's size.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Field numbers of ModelProto and StringStringEntryProto, from onnx.proto.
METADATA_PROPS = 14
KEY, VALUE = 1, 2

MAX_VARINT_BYTES = 10


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Return the metadata of the ONNX file at `path`. Raises ValueError where it is none, and OSError."""
    metadata = {}
    with Path(path).open("rb") as file:
        for _, entry in _fields(file, {METADATA_PROPS}):
            parts = dict(_fields(io.BytesIO(entry), {KEY, VALUE}))
            metadata[parts.get(KEY, b"").decode()] = parts.get(VALUE, b"").decode()
    return metadata


def _fields(file: BinaryIO, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of the wanted fields of a protobuf message, and skip the others.

    The encoding is described at https://protobuf.dev/programming-guides/encoding/.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    while file.tell() < length:
        number, wire_type = divmod(_varint(file), 8)
        if wire_type == 0:
            _varint(file)
            continue
        if wire_type not in (1, 2, 5):
            raise ValueError("not an ONNX file")
        size = {1: 8, 5: 4}.get(wire_type) or _varint(file)
        if size > length - file.tell():
            raise ValueError("the file ends too early")
        if number in wanted:
            yield number, file.read(size)
        else:
            file.seek(size, io.SEEK_CUR)


def _varint(file: BinaryIO) -> int:
    value = 0
    for position in range(MAX_VARINT_BYTES):
        byte = file.read(1)
        if not byte:
            raise ValueError("the file ends too early")
        value |= (byte[0] & 0x7F) << 7 * position
        if byte[0] < 0x80:
            return value
    raise ValueError("not an ONNX file")
