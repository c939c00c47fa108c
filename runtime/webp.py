"""The memory that libwebp needs for the Huffman tables of a WebP, known before it decodes the image.

A lossless image, or a compressed alpha channel, can have five tables for every 16 pixels. Each is a few bits in the
file and kilobytes in memory: 300 KB need 400 MB. The number of tables is in the compressed stream, behind up to three
small images that must be decoded to reach it:
https://developers.google.com/speed/webp/docs/webp_lossless_bitstream_specification
"""

import struct

MAX_CHUNKS = 100_000
MAX_BLOCKS = 100_000  # pixels of one of those small images; encoders write at most 16,000
TABLE_BYTES = 13_000  # the five tables of one group, without the 4 bytes per color of the color cache
CODE_LENGTH_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
PREDICTOR, CROSS_COLOR, _SUBTRACT_GREEN, COLOR_INDEXING = range(4)

Table = tuple[
    int, list[tuple[int, int]]
]  # bits to look at; for each value of these, the bits that the symbol has, and the symbol


def table_bytes(data: bytes) -> int:
    """Return the bytes of memory for the first frame's tables. Raises ValueError, IndexError or struct.error."""
    if len(data) < struct.unpack_from("<I", data, 4)[0] + 7:  # padding may be missing
        raise IndexError
    is_animated, at, alpha = data[12:16] == b"VP8X" and bool(data[20] & 2), 12, memoryview(b"")
    for _ in range(MAX_CHUNKS):
        kind, size = struct.unpack_from("<4sI", data, at)
        content = memoryview(data)[at + 8 : at + 8 + size]
        if len(content) < size:
            raise IndexError
        at += 8 + size + size % 2
        if kind == b"ANMF":  # a frame's chunks follow its header of 16 bytes
            is_animated, at = False, at - size - size % 2 + 16
        elif is_animated:
            continue
        elif kind == b"ALPH":
            alpha = alpha or content
        elif kind == b"VP8L":
            bits = struct.unpack_from("<xI", content)[0]
            return _Stream(content[5:]).table_bytes((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<6xHH", content)
            is_compressed = alpha and alpha[0] & 3 == 1
            return _Stream(alpha[1:]).table_bytes(width & 0x3FFF, height & 0x3FFF) if is_compressed else 0
    raise ValueError(f"it has more than {MAX_CHUNKS} chunks")


class _Stream:
    """The bits of a lossless image, the lowest of each byte first. Raises IndexError at the end, and ValueError."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data
        self.at = 0

    def table_bytes(self, width: int, height: int) -> int:
        """Read the start of an image, up to the number of its tables; return their bytes in memory."""
        for _ in range(5):  # each of the four transforms once
            if not self.read(1):
                break
            transform = self.read(2)
            if transform in (PREDICTOR, CROSS_COLOR):
                self.read_blocks(width, height)
            elif transform == COLOR_INDEXING:
                colors = self.read(8) + 1
                self.read_image(colors, 1)
                width = -(-width // (8 if colors <= 2 else 4 if colors <= 4 else 2 if colors <= 16 else 1))
        else:
            raise ValueError("a transform is repeated")
        cached_colors = self.read_cache()
        groups = 1 + self.read_blocks(width, height) if self.read(1) else 1
        return groups * (TABLE_BYTES + 4 * cached_colors)

    def peek(self, bits: int) -> int:
        value = int.from_bytes(self.data[self.at >> 3 : (self.at + bits + 7) >> 3], "little")
        return value >> (self.at & 7) & (1 << bits) - 1

    def read(self, bits: int) -> int:
        value = self.peek(bits)
        self.at += bits
        if self.at > 8 * len(self.data):
            raise IndexError
        return value

    def read_symbol(self, table: Table) -> int:
        bits, entries = table
        used, symbol = entries[self.peek(bits)]
        self.at += used
        return symbol

    def read_length(self, symbol: int) -> int:
        extra = max(0, symbol - 2 >> 1)
        return (2 + (symbol & 1) << extra if extra else symbol) + self.read(extra) + 1

    def read_cache(self) -> int:
        return 1 << self.read(4) if self.read(1) else 0

    def read_blocks(self, width: int, height: int) -> int:
        """Do as read_image, for an image with one pixel for each block of pixels."""
        side = 4 << self.read(3)
        return self.read_image(-(-width // side), -(-height // side))

    def read_image(self, width: int, height: int) -> int:
        """Read an image; return the largest number in the red (upper 8 bits) and green (lower 8 bits) of a pixel."""
        if width * height > MAX_BLOCKS:
            raise ValueError("its blocks are too small")
        sizes = (280 + self.read_cache(), 256, 256, 256, 40)
        green, red, blue, alpha, distance = (_table(self.read_code(size)) for size in sizes)
        pixels = largest = 0
        while pixels < width * height:
            symbol = self.read_symbol(green)
            if 256 <= symbol < 280:  # a copy of earlier pixels
                pixels += self.read_length(symbol - 256)
                self.read_length(self.read_symbol(distance))
                continue
            pixels += 1
            if symbol < 256:  # otherwise a color of the cache, so an earlier one
                largest = max(largest, self.read_symbol(red) << 8 | symbol)
                self.read_symbol(blue)
                self.read_symbol(alpha)
        self.read(0)
        return largest

    def read_code(self, size: int) -> list[int]:
        """Read a Huffman code; return the number of bits of each of its `size` symbols."""
        lengths = [0] * size
        if self.read(1):  # a simple code, of one or two symbols
            has_two = self.read(1)
            lengths[self.read(8 if self.read(1) else 1)] = 1
            if has_two:
                lengths[self.read(8)] = 1
            return lengths
        of_lengths = [0] * 19
        for n in range(4 + self.read(4)):
            of_lengths[CODE_LENGTH_ORDER[n]] = self.read(3)
        table, n, previous = _table(of_lengths), 0, 8
        for _ in range(2 + self.read(2 + 2 * self.read(3)) if self.read(1) else size):
            if n >= size:
                break
            symbol = self.read_symbol(table)
            bits, count = {16: (2, 3), 17: (3, 3), 18: (7, 11)}.get(symbol, (0, 1))
            count += self.read(bits)
            length = symbol if symbol < 16 else previous if symbol == 16 else 0
            previous = length or previous
            lengths[n : n + count] = [length] * count
            n += count
        if n > size:
            raise ValueError("a code is too long")
        return lengths


def _table(lengths: list[int]) -> Table:
    used = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if len(used) < 2:
        return 0, [(0, symbol) for _, symbol in used]
    bits, code = used[-1][0], 0
    entries = [(0, 0)] * (1 << bits)
    for length, symbol in used:
        first = int(f"{code >> bits - length:0{length}b}"[::-1], 2)
        entries[first :: 1 << length] = [(length, symbol)] * (1 << bits - length)
        code += 1 << bits - length
    if code != 1 << bits:
        raise ValueError("a code is incomplete")
    return bits, entries
