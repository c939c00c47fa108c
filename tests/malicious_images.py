"""Image files made to do harm: small ones that lie about their size, and valid ones that are enormous."""

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image
from PIL.PngImagePlugin import PngInfo

SIDE = 4_800  # of a square that takes most of the default of MAX_IMAGE_MB
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    """Return the image as a file of this format."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def small_images() -> dict[str, list[bytes]]:
    """Return small valid files of many kinds, by format: the starting points of mutations."""
    ramp, disc = Image.linear_gradient("L"), Image.radial_gradient("L")
    photo = Image.merge("RGB", (ramp, disc, ramp.rotate(90))).resize((24, 18))
    clear = photo.copy()
    clear.putalpha(128)
    gray, dots, bits = photo.convert("L"), photo.quantize(16), photo.convert("1")
    deep = Image.new("I;16", (24, 18), 40_000)
    exif = Image.Exif()
    exif[274], exif[270], exif[282] = 6, "hello", (72, 1)
    text = PngInfo()
    text.add_text("a", "b" * 50, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<tiff:Orientation>3</tiff:Orientation>")
    more = {"save_all": True, "append_images": [photo]}
    kinds: dict[str, list[tuple[Image.Image, dict]]] = {
        "JPEG": [(photo, {"exif": exif}), (photo, {"progressive": True, "icc_profile": b"x" * 99}), (gray, {})],
        "PNG": [
            (clear, {"exif": exif, "pnginfo": text, "icc_profile": b"x" * 99}),
            (deep, {}),
            (bits, {}),
            (photo, more),
        ],
        "WEBP": [(photo, {"exif": exif}), (clear, {}), (clear, {"lossless": True}), (photo, more)],
        "GIF": [(gray, {}), (dots, {"transparency": 1, "comment": b"hi"}), (dots, more)],
        "BMP": [(bits, {}), (dots, {}), (photo, {}), (clear, {})],
    }
    files = {name: [encoded(image, name, **options) for image, options in kind] for name, kind in kinds.items()}
    files["JPEG"] += [encoded(photo.convert("CMYK"), "JPEG"), encoded(photo, "MPO", **more)]
    files["PNG"].append(encoded(dots, "PNG", transparency=3))
    files["BMP"].append(bmp_rle(9, 9, b"\5\1\0\0\3\2\0\2\1\1\0\4abcd\0\1"))
    return files


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with correct length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, kind: int = 2) -> bytes:
    """Return a PNG of one pixel, of PNG's color type `kind`, with more chunks in front of it."""
    header, pixel = struct.pack(">IIBBBBB", 1, 1, 8, kind, 0, 0, 0), zlib.compress(b"\0\0\0\0")
    whole = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", pixel), png_chunk(b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(whole)


def with_right_checksums(png: bytes) -> bytes:
    """Return a damaged PNG with checksums that hide the damage."""
    fixed, at = bytearray(png), len(PNG_SIGNATURE)
    while at + 12 <= len(fixed) and (end := at + 8 + int.from_bytes(fixed[at : at + 4], "big")) + 4 <= len(fixed):
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def bmp_rle(width: int, height: int, runs: bytes) -> bytes:
    """Return a run-length encoded BMP of 256 colors."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + bytes(1024) + runs


def exif_of(*entries: tuple[int, int, int, int], tail: bytes = b"") -> bytes:
    """Return EXIF of these (tag, type, count, value), with `tail` at its end."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + tail


def jpeg_with(*segments: bytes) -> bytes:
    """Return a small JPEG with more segments at its start."""
    jpeg = encoded(Image.new("RGB", (8, 8)), "JPEG")
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def jpeg_of_many_scans(count: int) -> bytes:
    """Return a progressive JPEG of 24 million pixels that repeats its last scan, which changes nothing."""
    jpeg = encoded(Image.new("RGB", (SIDE, SIDE)), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * count + jpeg[-2:]


def huge(file_format: str, width: int, height: int) -> bytes:
    """Return a valid file of one color: a few kilobytes, or for BMP megabytes."""
    mode = {"GIF": "L", "BMP": "1", "PNG": "RGBA", "WEBP": "RGBA"}.get(file_format, "RGB")
    fast = {"lossless": True, "method": 0} if file_format == "WEBP" else {}
    return encoded(Image.new(mode, (width, height)), file_format, **fast)


def sizes_in_header(file_format: str, data: bytes) -> list[tuple[int, str]]:
    """Return the offset of width and height in a small image's header, each with its struct format."""
    if file_format == "JPEG":
        start = next(at for at in range(len(data)) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC2))
        return [(start + 7, ">H"), (start + 5, ">H")]
    if file_format == "WEBP":
        return [(24, "<H"), (27, "<H")] if data[12:16] == b"VP8X" else [(26, "<H"), (28, "<H")]
    return {"PNG": [(16, ">I"), (20, ">I")], "GIF": [(6, "<H"), (8, "<H")], "BMP": [(18, "<i"), (22, "<i")]}[
        file_format
    ]


def lying(file_format: str, data: bytes, width: int, height: int) -> bytes:
    """Return the image with another size in its header, or the largest that fits there."""
    patched = bytearray(data)
    for (at, kind), value in zip(sizes_in_header(file_format, data), (width, height), strict=True):
        bits = 8 * struct.calcsize(kind) - (kind[1] == "i")
        struct.pack_into(kind, patched, at, min(value, 2**bits - 1))
    return with_right_checksums(bytes(patched)) if file_format == "PNG" else bytes(patched)


def webp_canvas(width: int, height: int) -> bytes:
    """Return a WebP of one pixel on a canvas of this size."""
    pixel = encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    canvas = bytes([0, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return riff_chunk(b"RIFF", b"WEBP" + riff_chunk(b"VP8X", canvas) + pixel)


def gif_with_disposal(method: int) -> bytes:
    """Return a GIF of 43 bytes and 65,535x65,535 pixels, with a transparent color and this disposal method."""
    screen = struct.pack("<6sHHBBB6x", b"GIF89a", 65_535, 65_535, 0x80, 0, 0)
    control = struct.pack("<BBBBHBx", 0x21, 0xF9, 4, method << 2 | 1, 0, 0)
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, 65_535, 65_535, 0)
    return screen + control + frame + b"\x02\x02\x44\x01\0;"


def gif_of_blocks(count: int) -> bytes:
    """Return a GIF whose comment has N blocks of one byte."""
    gif = encoded(Image.new("L", (9, 9)), "GIF", comment=b"ab")
    return gif.replace(b"\x02ab", b"\x01a" * count)


def jpeg_scans_of_three_components(side: int) -> bytes:
    """Return a CMYK JPEG whose first scan has three of its four components, so that the decoder keeps all of it."""
    jpeg = encoded(Image.new("CMYK", (side, side), (9, 99, 200, 0)), "JPEG")
    at = jpeg.index(b"\xff\xda\0\x0e\4")
    return jpeg[:at] + b"\xff\xda\0\x0c\3" + jpeg[at + 5 : at + 11] + jpeg[at + 13 :]


def webp_stream_of_groups(side: int, groups: int) -> bytes:
    """Return a black square of a lossless WebP, with a group of Huffman tables for each of its first 4x4 blocks."""
    bits: list[str] = []  # of each value the lowest first

    def write(value: int, count: int) -> None:
        bits.append(f"{value:0{count}b}"[::-1])

    def write_symbol(byte: int) -> None:
        bits.append(f"{byte:08b}")

    single = 0b0001, 4  # a code of one symbol, which is 0
    write(0b00, 2)  # no transform and no color cache
    write(0b0001, 4)  # groups of tables by blocks of 4x4 pixels
    write(0, 1)  # no color cache
    for limit in (256, None):  # green, which has more symbols than these, and red
        write(0, 1)
        write(12 - 4, 4)
        for n in range(12):
            write(n == 11, 3)  # the only length is 8
        write(limit is not None, 1)
        if limit:
            write(3, 3)
            write(limit - 2, 8)
    for _ in range(3):
        write(*single)
    for n in range((side // 4) ** 2):
        number = min(n, groups - 1)
        write_symbol(number & 255)
        write_symbol(number >> 8)
    for _ in range(5 * groups):
        write(*single)
    text = "".join(bits)
    return int(text[::-1], 2).to_bytes(-(-len(text) // 8), "little")


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a WebP."""
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def webp_of_groups(side: int, groups: int) -> bytes:
    """Return a lossless WebP with N groups of Huffman tables."""
    size = struct.pack("<BI", 0x2F, side - 1 | side - 1 << 14)
    return riff_chunk(b"RIFF", b"WEBP" + riff_chunk(b"VP8L", size + webp_stream_of_groups(side, groups)))


def webp_of_alpha_groups(side: int, groups: int) -> bytes:
    """Return a lossy WebP whose alpha channel has N groups of Huffman tables."""
    lossy = encoded(Image.new("RGB", (side, side)), "WEBP")[12:]
    canvas = bytes([0x10, 0, 0, 0]) + (side - 1).to_bytes(3, "little") * 2
    alpha = riff_chunk(b"ALPH", b"\1" + webp_stream_of_groups(side, groups))
    return riff_chunk(b"RIFF", b"WEBP" + riff_chunk(b"VP8X", canvas) + alpha + lossy)


def webp_animation(image: bytes) -> bytes:
    """Return an animation whose one frame is the image of another WebP, a lossless square."""
    side = (int.from_bytes(image[21:25], "little") & 0x3FFF).to_bytes(3, "little")
    frame = riff_chunk(b"ANMF", bytes(6) + side * 2 + bytes(4) + image[12:])
    canvas = riff_chunk(b"VP8X", b"\2\0\0\0" + side * 2)
    return riff_chunk(b"RIFF", b"WEBP" + canvas + riff_chunk(b"ANIM", bytes(6)) + frame)


def gif_of_frames(count: int) -> bytes:
    """Return a GIF of N frames, each a different gray."""
    frames = [Image.new("L", (9, 9), n % 256) for n in range(count)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def zipped(kind: bytes, size: int) -> bytes:
    """Return a PNG chunk with N compressed zeros, which take a thousandth of their size."""
    return png_chunk(kind, b"x\0\0" + zlib.compress(bytes(size), 9))


def exif_of_fractions(count: int) -> bytes:
    """Return EXIF whose orientation is N fractions."""
    return exif_of((274, 5, count, 0), tail=bytes([0, 0, 0, 1] * 2 * count))


def exif_segments(exif: bytes) -> list[bytes]:
    """Return the segments of a JPEG that hold this EXIF."""
    pieces = (exif[at : at + 65_000] for at in range(0, len(exif), 65_000))
    return [b"\xff\xe1" + struct.pack(">H", len(piece) + 8) + b"Exif\0\0" + piece for piece in pieces]


def turned(file_format: str) -> bytes:
    """Return an image of 24 million transparent pixels with an orientation in its EXIF."""
    exif = Image.Exif()
    exif[274] = 6
    fast = {"lossless": True, "method": 0} if file_format == "WEBP" else {"compress_level": 1}
    return encoded(Image.new("RGBA", (SIDE, SIDE)), file_format, exif=exif, **fast)


def webp_of_frames(count: int) -> bytes:
    """Return a WebP of N frames."""
    frames = [Image.new("RGB", (64, 64), (n % 256, n // 256, 0)) for n in range(count)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])


def png_interlaced() -> bytes:
    """Return an interlaced PNG of 24 million pixels of 16 bits and alpha, all 0."""
    steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    size = sum(-(-(SIDE - y) // down) * (1 + 8 * -(-(SIDE - x) // right)) for x, y, right, down in steps)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, 6, 0, 0, 1))
    return PNG_SIGNATURE + header + png_chunk(b"IDAT", zlib.compress(bytes(size), 1)) + png_chunk(b"IEND", b"")


# By name, the status that each one gets, and what makes it.
BOMBS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "JPEG of 500 scans": (422, lambda: jpeg_of_many_scans(500)),
    "JPEG of 32 scans": (200, lambda: jpeg_of_many_scans(22)),
    "JPEG of 5,000 pieces of EXIF": (200, lambda: jpeg_with(b"\xff\xe1\x00\x0cExif\0\0abcd" * 5_000)),
    "JPEG with EXIF of 500,000 fractions": (200, lambda: jpeg_with(*exif_segments(exif_of_fractions(500_000)))),
    "JPEG of 90,000 comments": (200, lambda: jpeg_with(b"\xff\xfe\x00\x02" * 90_000)),
    "JPEG of 30,000 restart intervals": (200, lambda: jpeg_with(b"\xff\xdd\0\4\0\0" * 30_000)),
    "JPEG of CMYK noise, progressive": (
        200,
        lambda: encoded(Image.effect_noise((SIDE, SIDE), 9).convert("CMYK"), "JPEG", progressive=True, quality=20),
    ),
    "JPEG of three components of four": (200, lambda: jpeg_scans_of_three_components(SIDE)),
    "JPEG of 60 frames": (422, lambda: jpeg_with((b"\xff\xc0\xff\xff" + bytes(65_533)) * 60)),
    "JPEG of 65,500 squared": (422, lambda: lying("JPEG", encoded(Image.new("RGB", (9, 9)), "JPEG"), 65_500, 65_500)),
    "JPEG of a line": (200, lambda: encoded(Image.new("RGB", (381, 65_500)), "JPEG")),
    "PNG without its palette": (422, lambda: png_with(kind=3)),
    "PNG with 80 compressed texts": (200, lambda: png_with(zipped(b"zTXt", 999_000) * 80)),
    "PNG with a large compressed text": (200, lambda: png_with(zipped(b"zTXt", 1_100_000))),
    "PNG with a large color profile": (200, lambda: png_with(zipped(b"iCCP", 1_100_000))),
    "PNG with 200 color profiles": (200, lambda: png_with(zipped(b"iCCP", 999_000) * 200)),
    "PNG of 50,000 chunks": (200, lambda: png_with(png_chunk(b"teST", b"") * 50_000)),
    "PNG with EXIF of 60,000 fractions": (200, lambda: png_with(png_chunk(b"eXIf", exif_of_fractions(60_000)))),
    "PNG with EXIF of 500,000 fractions": (200, lambda: png_with(png_chunk(b"eXIf", exif_of_fractions(500_000)))),
    "PNG with EXIF as a text of 600,000 letters": (
        200,
        lambda: png_with(png_chunk(b"tEXt", b"Raw profile type exif\0\n\n\n" + b"0" * 600_000)),
    ),
    "PNG on its side": (200, lambda: turned("PNG")),
    "PNG interlaced": (200, png_interlaced),
    "PNG of a line": (200, lambda: encoded(Image.new("RGBA", (65_535, 381)), "PNG", compress_level=1)),
    "PNG palette with transparency": (
        200,
        lambda: encoded(Image.new("P", (SIDE, SIDE)), "PNG", transparency=0, compress_level=1),
    ),
    "WebP on its side": (422, lambda: turned("WEBP")),
    "WebP of 1,000 frames": (200, lambda: webp_of_frames(1_000)),
    "WebP canvas of 16 million squared": (422, lambda: webp_canvas(2**24, 2**24)),
    "WebP of 65,536 groups of tables": (422, lambda: webp_of_groups(1_024, 65_536)),
    "WebP of 300 groups of tables": (200, lambda: webp_of_groups(1_024, 300)),
    "WebP of 65,536 groups of tables for alpha": (422, lambda: webp_of_alpha_groups(1_024, 65_536)),
    "GIF of 200,000 blocks": (200, lambda: gif_of_blocks(200_000)),
    "GIF of 9,000,000 blocks": (422, lambda: gif_of_blocks(9_000_000)),
    "GIF of 1,000 frames": (200, lambda: gif_of_frames(1_000)),
    "GIF canvas of 65,535 squared": (422, lambda: lying("GIF", encoded(Image.new("L", (1, 1)), "GIF"), 2**16, 2**16)),
    "GIF of 65,535 squared, disposed to its background": (422, lambda: gif_with_disposal(2)),
    "GIF of 65,535 squared, disposed to what was there": (422, lambda: gif_with_disposal(3)),
    "BMP of rows that end at once": (200, lambda: bmp_rle(60_000, 40, b"\1\0\0\0" * 40)),
    "BMP of 100,000 runs of nothing": (422, lambda: bmp_rle(SIDE, SIDE, b"\1\0" * 100_000)),
}
