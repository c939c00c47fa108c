"""JPEG and PNG files reduced to what decoding needs.

Pillow keeps every segment of a header in memory, and refuses sound files for segments that decoding does not need.
"""

import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MAX_SEGMENTS = 100_000  # a JPEG's in front of the pixels; all chunks of a PNG
# Pixels times scans of a JPEG: about 2 s of CPU time. A progressive one has 10 scans, or 18 for CMYK, but a scan of 42
# bytes can visit every pixel in vain.
MAX_SCANNED_PIXELS = 1_100_000_000
SCAN = b"\xff\xda\0"  # the marker of a scan, which cannot occur in its data
END = b"\xff\xd9"

MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # with a segment: not TEM, RSTn or SOI
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
DECODABLE = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # the frames that are neither lossless nor hierarchical
TABLES = {0xC4, 0xCC, 0xDB, 0xDD}


@dataclass(frozen=True)
class Stripped:
    """What decoding needs of a file, and the EXIF that was taken out of it."""

    data: bytes
    exif: bytes = b""
    coefficient_bytes: int = 0  # memory that decoding a JPEG of several scans needs at any scale
    is_complete: bool = True  # whether a JPEG has its end marker; `data` always does


def strip_jpeg(data: bytes) -> Stripped:
    """Strip a JPEG. Raises ValueError, or IndexError or struct.error if its header is cut off."""
    kept: dict[int, memoryview] = {}
    frame, exif, at = b"", b"", 2
    for n in range(MAX_SEGMENTS):
        found = MARKER.search(data, at)
        if not found:
            raise IndexError
        marker, at = data[found.end() - 1], found.end()
        at += max(2, *struct.unpack_from(">H", data, at))
        segment = data[found.end() + 2 : at]
        if marker == 0xDA:
            break
        if marker in FRAMES:
            if frame or marker not in DECODABLE:
                raise ValueError("it has more than one frame header" if frame else "it is lossless or hierarchical")
            is_progressive, frame = marker in (0xC2, 0xCA), segment
        if marker in FRAMES | TABLES:
            kept[n] = memoryview(data)[found.start() : at]
        elif segment.startswith((b"JFIF\0", b"Adobe")) and len(segment) >= 12:  # the color space depends on them
            kept.setdefault(-marker, memoryview(data)[found.start() : at])
        elif segment.startswith(b"Exif\0\0"):
            exif = exif or segment
    else:
        raise ValueError(f"it has more than {MAX_SEGMENTS} segments")
    height, width, components = struct.unpack_from(">xHHB", frame)
    has_several_scans = is_progressive or segment[0] < components
    # Several images may follow each other; scans are those of the first. The last marker is found faster.
    end = data.find(END, at) if has_several_scans else data.rfind(END, at)
    is_complete, end = end > 0, end if end > 0 else len(data)
    scans = 1 + data.count(SCAN, at, end) if has_several_scans else 1
    if scans * width * height > MAX_SCANNED_PIXELS:
        remedy = "save it as a baseline JPEG" if scans > 1 else "resize it"
        raise ValueError(f"it has {scans} scans of {width}x{height} pixels: {remedy}")
    coefficients = 0
    if has_several_scans:  # libjpeg keeps the coefficients until the last scan
        sampling = [divmod(frame[7 + 3 * n], 16) for n in range(components)]
        across, down = (8 * max(sides) for sides in zip(*sampling, strict=True))
        coefficients = -(-width // across) * -(-height // down) * 64 * sum(x * y for x, y in sampling)
    pixels = memoryview(data)[found.start() : end]
    return Stripped(b"".join([data[:2], *kept.values(), pixels, END]), exif, 2 * coefficients, is_complete)


def strip_png(data: bytes) -> Stripped:
    """Strip a PNG to its first image. Raises ValueError, or struct.error if its header is cut off.

    Ancillary chunks with a wrong checksum are skipped, as browsers do.
    """
    chunks: dict[bytes, bytes] = {}
    pixels: list[Any] = []
    at = 8
    for _ in range(MAX_SEGMENTS):
        kind, start = data[at + 4 : at + 8], at + 8
        if len(kind) < 4 or kind == b"IEND":
            break
        end = start + int.from_bytes(data[at : at + 4], "big")
        at = end + 4
        if kind == b"IDAT":
            pixels.append(memoryview(data)[start:end])
        elif kind in (b"IHDR", b"PLTE") or (
            kind in (b"tRNS", b"eXIf") and data[end:at] == struct.pack(">I", zlib.crc32(data[start - 4 : end]))
        ):
            chunks.setdefault(kind, data[start - 8 : at])
    else:
        raise ValueError(f"it has more than {MAX_SEGMENTS} chunks")
    exif = chunks.pop(b"eXIf", b"")[8:]
    depth, color = struct.unpack_from("BB", chunks.get(b"IHDR", b""), 16)
    if color == 0 and depth in (2, 4) and b"tRNS" in chunks:  # Pillow scales the pixels to 8 bits, but not this
        transparent = b"tRNS\0" + bytes([chunks[b"tRNS"][9] * 255 // (2**depth - 1) & 255])
        chunks[b"tRNS"] = struct.pack(">I6sI", 2, transparent, zlib.crc32(transparent))
    image_data = [struct.pack(">I", sum(map(len, pixels))), b"IDAT", *pixels, bytes(4)]  # Pillow ignores this checksum
    return Stripped(b"".join([data[:8], *chunks.values(), *image_data, b"\0\0\0\0IEND\xaeB`\x82"]), exif)


def exif_orientation(info: dict[Any, Any]) -> int:
    """Return the orientation in the EXIF of a Pillow image's `info`; 1 if there is none or it cannot be read."""
    tiff = info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    with suppress(struct.error):
        start = struct.unpack_from(f"{order}I", tiff, 4)[0]
        for n in range(struct.unpack_from(f"{order}H", tiff, start)[0]):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * n)
            if (tag, kind) == (0x0112, 3):
                return value
    return 1
