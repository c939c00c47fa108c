"""Image files: every kind becomes RGB, upright and on white, or is refused with the reason, at a bounded cost."""

import gc
import io
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from model import ImagePreprocessor
from runtime import decoding, stripping, webp
from runtime.decoding import FORMATS, CpuBudget, needed_bytes, open_image, to_rgb
from runtime.errors import InvalidInput, Unavailable
from tests.malicious_images import (
    PNG_SIGNATURE,
    bmp_rle,
    encoded,
    exif_of,
    exif_segments,
    gif_with_disposal,
    jpeg_scans_of_three_components,
    jpeg_with,
    lying,
    png_chunk,
    png_with,
    webp_animation,
    webp_canvas,
    webp_of_alpha_groups,
    webp_of_groups,
)
from tests.server_process import ROOT, TENCH

BEST = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": "4:4:4"}}


def decoded(data):
    return np.asarray(to_rgb(open_image(data)))


def dots(mode, *values):
    """Return an image one pixel high."""
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def gray16():
    return Image.fromarray(np.array([[0, 255, 256, 0x80FF, 0xFFFF]], np.uint16))


def palette():
    image = dots("P", 0, 1)
    image.putpalette([10, 20, 30, 200, 100, 0])
    return image


@pytest.fixture
def quarters():
    """Return an image that every rotation and reflection changes: four colors, unequal sides."""
    image = Image.new("RGB", (48, 32), "red")
    draw = ImageDraw.Draw(image)
    for corner, color in [((24, 0), "lime"), ((0, 16), "blue"), ((24, 16), "white")]:
        draw.rectangle((*corner, corner[0] + 23, corner[1] + 15), color)
    return image


def assert_pixels(actual, expected, tolerance=0):
    assert actual.dtype == np.uint8
    np.testing.assert_allclose(actual.astype(int), np.asarray(expected).astype(int), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("image", "file_format", "options", "expected"),
    [
        pytest.param(dots("L", 0, 100), "PNG", {}, [[0] * 3, [100] * 3], id="gray"),
        pytest.param(dots("L", 0, 100), "PNG", {"transparency": 100}, [[0] * 3, [255] * 3], id="gray, one transparent"),
        pytest.param(dots("LA", (100, 255), (100, 0)), "PNG", {}, [[100] * 3, [255] * 3], id="gray and alpha"),
        pytest.param(palette(), "PNG", {}, [[10, 20, 30], [200, 100, 0]], id="palette"),
        pytest.param(palette(), "PNG", {"transparency": 1}, [[10, 20, 30], [255] * 3], id="palette, one transparent"),
        pytest.param(palette(), "GIF", {"transparency": 1}, [[10, 20, 30], [255] * 3], id="GIF, one transparent"),
        pytest.param(dots("RGB", (255, 128, 0)), "PNG", {}, [[255, 128, 0]], id="RGB, not BGR"),
        pytest.param(
            dots("RGB", (1, 2, 3)), "PNG", {"transparency": (1, 2, 3)}, [[255] * 3], id="RGB, one transparent"
        ),
        pytest.param(dots("RGBA", (200, 0, 0, 51)), "PNG", {}, [[244, 204, 204]], id="RGBA on white"),
        pytest.param(
            dots("RGBA", (200, 0, 0, 0)), "WEBP", {"lossless": True, "exact": True}, [[255] * 3], id="invisible WebP"
        ),
        pytest.param(dots("1", 0, 255), "PNG", {}, [[0] * 3, [255] * 3], id="1 bit"),
        pytest.param(gray16(), "PNG", {}, [[v] * 3 for v in (0, 0, 1, 128, 255)], id="16-bit PNG"),
        pytest.param(
            gray16(),
            "PNG",
            {"transparency": 256},
            [[v] * 3 for v in (0, 0, 255, 128, 255)],
            id="16-bit, one transparent",
        ),
    ],
)
def test_converts_every_mode_to_rgb_on_white(image, file_format, options, expected):
    assert_pixels(decoded(encoded(image, file_format, **options)), [expected])


def test_converts_cmyk_to_its_visible_colors():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = np.full((16, 16, 3), (255, 0, 0))
    assert_pixels(decoded(encoded(cmyk, "JPEG", **BEST["JPEG"])), red, tolerance=4)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [*((file_format, {}) for file_format in FORMATS), ("JPEG", {"progressive": True})],
    ids=[*FORMATS, "progressive JPEG"],
)
def test_decodes_every_format(quarters, file_format, options):
    data = encoded(quarters, file_format, **BEST.get(file_format, {}) | options)
    assert_pixels(decoded(data), quarters, tolerance=12 * (file_format == "JPEG"))


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_uses_the_first_frame(quarters, file_format):
    more = [Image.new("RGB", quarters.size, color) for color in ("black", "yellow")]
    data = encoded(quarters, file_format, save_all=True, append_images=more, **BEST.get(file_format, {}))
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert_pixels(decoded(data), quarters)


def test_uses_the_first_image_of_an_mpo(quarters):
    more = [Image.new("RGB", quarters.size, "black")]
    data = encoded(quarters, "MPO", save_all=True, append_images=more, **BEST["JPEG"])
    assert b"MPF\0" in data
    image = open_image(data)
    assert image.format == "JPEG"
    assert_pixels(np.asarray(to_rgb(image)), quarters, tolerance=12)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda upright: upright),
        (2, np.fliplr),
        (3, lambda upright: np.rot90(upright, 2)),
        (4, np.flipud),
        (5, lambda upright: upright.swapaxes(0, 1)),
        (6, lambda upright: np.rot90(upright, 1)),
        (7, lambda upright: np.rot90(upright, 2).swapaxes(0, 1)),
        (8, lambda upright: np.rot90(upright, -1)),
    ],
)
def test_applies_every_exif_orientation(quarters, orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph = Image.fromarray(np.ascontiguousarray(stored(np.asarray(quarters))))
    assert_pixels(decoded(encoded(photograph, "JPEG", exif=exif, **BEST["JPEG"])), quarters, tolerance=12)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_ignores_unreadable_exif(quarters, file_format):
    data = encoded(quarters, file_format, exif=b"Exif\0\0this is not EXIF", **BEST.get(file_format, {}))
    assert_pixels(decoded(data), quarters, tolerance=12)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_reads_large_exif(quarters, file_format):
    exif = exif_of((274, 3, 1, 3), tail=bytes(600_000))
    upside_down = quarters.transpose(Image.Transpose.ROTATE_180)
    assert_pixels(decoded(encoded(upside_down, file_format, exif=exif, **BEST.get(file_format, {}))), quarters)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_ignores_an_orientation_in_xmp_alone(quarters, file_format):
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>"
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    options = {"pnginfo": info} if file_format == "PNG" else {"xmp": xmp}
    data = encoded(quarters, file_format, **options, **BEST.get(file_format, {}))
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert_pixels(decoded(data), quarters, tolerance=12)


def test_ignores_an_orientation_that_is_not_a_short(quarters):
    exif = exif_of((0x0112, 4, 1, 6))
    assert_pixels(decoded(encoded(quarters, "PNG", exif=exif)), quarters)


def test_uses_the_first_exif_of_a_jpeg(quarters):
    first, second = (exif_segments(exif_of((0x0112, 3, 1, orientation))) for orientation in (3, 6))
    upside_down = encoded(quarters.transpose(Image.Transpose.ROTATE_180), "JPEG", **BEST["JPEG"])
    data = b"".join([upside_down[:2], *first, *second, upside_down[2:]])
    assert_pixels(decoded(data), quarters, tolerance=12)


@pytest.mark.parametrize("keep_rgb", [False, True])
def test_keeps_what_tells_the_color_space_of_a_jpeg(quarters, keep_rgb):
    data = encoded(quarters, "JPEG", keep_rgb=keep_rgb, **{} if keep_rgb else BEST["JPEG"])
    # Without JFIF's or Adobe's segment, libjpeg guesses from the names of the components.
    old, new = (b"RGB", b"\1\2\3") if keep_rgb else (b"\1\2\3", b"RGB")
    data = bytearray(data)
    for marker, start in ((b"\xff\xc0", 10), (b"\xff\xda", 5)):
        at, step = data.index(marker) + start, 3 if marker == b"\xff\xc0" else 2
        assert data[at : at + 3 * step : step] == old
        data[at : at + 3 * step : step] = new
    assert_pixels(decoded(bytes(data)), quarters, tolerance=12)


def test_counts_the_scans_of_the_first_image_alone(quarters):
    image = encoded(quarters, "JPEG", progressive=True)
    assert_pixels(decoded(image * 5), decoded(image))


@pytest.mark.parametrize("order", ["<", ">"])
def test_reads_exif_in_both_byte_orders(quarters, order):
    signature = b"II*\0" if order == "<" else b"MM\0*"
    exif = signature + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, 3, 0, 0)
    upside_down = quarters.transpose(Image.Transpose.ROTATE_180)
    assert_pixels(decoded(encoded(upside_down, "PNG", exif=exif)), quarters)


@pytest.mark.parametrize(
    ("file_format", "name"),
    [
        ("TIFF", "TIFF"),
        ("AVIF", "AVIF.*export it as JPEG"),
        ("ICO", "ICO"),
        ("JPEG2000", "JPEG 2000"),
        ("PDF", "PDF"),
        *((other, "not an image") for other in ("DDS", "DIB", "ICNS", "PCX", "PPM", "QOI", "SGI", "TGA")),
    ],
)
def test_names_other_formats_of_pillow(file_format, name):
    with pytest.raises(InvalidInput, match=name) as refused:
        open_image(encoded(Image.new("RGB", (16, 16)), file_format))
    assert "send JPEG, PNG, WebP, GIF or BMP" in str(refused.value)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        *((b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic", "HEIC.*as JPEG") for brand in (b"heic", b"mif1", b"hevc")),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF.*as JPEG"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw"),
        (b"II*\0\x10\0\0\0CR\2\0", "raw"),
        (b"FUJIFILMCCD-RAW 0201", "raw"),
        (b"MM\0*\0\0\0\x08", "TIFF or camera raw"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", "JPEG 2000"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a -->\n<!DOCTYPE svg>\n<svg width='1'/>", "SVG"),
        (b"\n<!DOCTYPE html><html><svg/></html>", "web page"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\1\0\1\0", "ICO"),
        (b"", "empty"),
        (b"garbage" * 99, "not an image"),
        (b"BMW is not a bitmap at all", "not an image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not an image"),
    ],
)
def test_names_what_is_not_an_accepted_image(data, name):
    with pytest.raises(InvalidInput, match=name) as refused:
        open_image(data)
    assert "send JPEG, PNG, WebP, GIF or BMP" in str(refused.value)


CLAIMS = {name: lying(name, encoded(Image.new("L", (1, 1)), name), 2**31, 2**31) for name in FORMATS} | {
    "GIF with disposal to the background": gif_with_disposal(2),
    "GIF with disposal to the previous frame": gif_with_disposal(3),
    "GIF frame beyond its canvas": gif_with_disposal(2).replace(b"GIF89a\xff\xff\xff\xff", b"GIF89a\1\0\1\0"),
    "WebP canvas": webp_canvas(16_383, 16_383),
}


@pytest.mark.parametrize("name", ["GIF frame beyond its canvas", "WebP canvas"])
def test_names_the_reason_when_pillow_refuses_the_size(name):
    with pytest.raises(InvalidInput, match="too many pixels: resize it"):
        open_image(CLAIMS[name])


def test_imports_no_other_decoder():
    script = (
        "import sys; from runtime import decoding\n"
        "try: decoding.open_image(sys.stdin.buffer.read())\nfinally: print(*sys.modules)"
    )
    tiff = encoded(Image.new("RGB", (16, 16)), "TIFF")
    ran = subprocess.run([sys.executable, "-c", script], input=tiff, cwd=ROOT, capture_output=True, check=False)
    plugins = {name for name in ran.stdout.decode().split() if name.endswith("ImagePlugin")}
    assert plugins == {f"PIL.{name}ImagePlugin" for name in ("Jpeg", "Png", "WebP", "Gif", "Bmp")}


def with_frame_marker(marker):
    jpeg = encoded(Image.new("RGB", (16, 16)), "JPEG")
    return jpeg.replace(b"\xff\xc0", bytes([0xFF, marker]))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (with_frame_marker(0xC3), "JPEG that cannot be read: .*lossless"),
        (
            encoded(Image.new("L", (9, 9)), "JPEG").replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x0b\x0c"),
            "JPEG .*12-bit",
        ),
        (encoded(Image.new("L", (9, 9)), "PNG").replace(b"IHDR", b"IHDX"), "PNG"),
        (lying("PNG", encoded(Image.new("L", (9, 9)), "PNG"), 0, 9), "PNG that cannot be read"),
        (encoded(Image.new("L", (9, 9)), "BMP").replace(b"\x28\0\0\0", b"\x29\0\0\0", 1), "BMP that cannot be read"),
        (b"GIF89a" + bytes(7) + b"," + bytes(9) + b"\x02\x02\x44\x01\0;", "GIF that cannot be read"),
        (encoded(Image.new("L", (9, 9)), "WEBP").replace(b"VP8 ", b"VP8?"), "WebP"),
    ],
    ids=["lossless JPEG", "12-bit JPEG", "PNG without header", "PNG of width 0", "BMP", "GIF", "WebP"],
)
def test_names_the_format_of_unreadable_files(data, name):
    with pytest.raises(InvalidInput, match=name):
        decoded(data)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.999])
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        *((file_format, {}) for file_format in FORMATS),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_blocks": 3}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_reports_truncated_files_as_incomplete(file_format, options, part):
    data = encoded(Image.effect_noise((160, 160), 80).convert("RGB"), file_format, **options)
    with pytest.raises(InvalidInput, match="incomplete"):
        decoded(data[: int(len(data) * part)])


def test_reports_a_webp_without_its_last_byte_as_incomplete():
    files = (encoded(Image.linear_gradient("L").resize((side, side)), "WEBP") for side in range(8, 64))
    unpadded = next(data for data in files if data[16] % 2 == 0)
    with pytest.raises(InvalidInput, match="incomplete"):
        open_image(unpadded[:-1])


@pytest.mark.parametrize("size", [13, 700, 790])
def test_reports_a_gif_cut_before_its_pixels_as_incomplete(size):
    with pytest.raises(InvalidInput, match="incomplete"):
        open_image(encoded(Image.linear_gradient("L"), "GIF", comment=b"a" * 20)[:size])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_accepts_a_jpeg_without_end_marker(mode, options):
    data = encoded(Image.effect_noise((60, 44), 80).convert(mode), "JPEG", **options)
    for end in (b"", b"\xff", b"\0" * 9):
        np.testing.assert_array_equal(decoded(data[:-2] + end), decoded(data))


def test_accepts_a_png_without_iend(quarters):
    assert_pixels(decoded(encoded(quarters, "PNG")[:-12]), quarters)


@pytest.mark.parametrize(
    "junk",
    [b"\0\0\0", b"\xff\xff", b"\xff\1\xff\xd8", b"\xff\xd0", b"\xff\xe0\0\2", b"\xff\xe0\0\7JFIF\0", b"\xff\xe0\0\0"],
)
def test_skips_junk_between_jpeg_segments(quarters, junk):
    data = encoded(quarters, "JPEG", **BEST["JPEG"])
    for at in (2, data.index(b"\xff\xdb")):
        np.testing.assert_array_equal(decoded(data[:at] + junk + data[at:]), decoded(data))


def large_chunks():
    zeros = zlib.compress(bytes(5_000_000))
    yield from (png_chunk(kind, b"x\0\0" + zeros) for kind in (b"zTXt", b"iCCP"))
    yield png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros)
    yield png_chunk(b"tEXt", b"prompt\0" + bytes(2_000_000))
    yield png_chunk(b"eXIf", bytes(2_000_000))


@pytest.mark.parametrize("chunk", [*large_chunks()], ids=["zTXt", "iCCP", "iTXt", "tEXt", "eXIf"])
def test_skips_large_ancillary_png_chunks(chunk):
    assert decoded(png_with(chunk)).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("kind", [b"tEXt", b"iCCP", b"gAMA", b"tRNS", b"eXIf", b"acTL"])
def test_skips_ancillary_chunks_with_wrong_checksum(kind):
    content = exif_of((274, 3, 1, 6)) if kind == b"eXIf" else bytes(8)
    wrong = png_chunk(kind, content)[:-4] + b"\0\0\0\0"
    assert decoded(png_with(wrong)).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_gray_of_any_depth_is_white(depth):
    top = 2**depth - 1
    for gray in {0, 1, top}:
        size = struct.pack(">IIBBBBB", 8 // depth, 1, depth, 0, 0, 0, 0)
        pixels = zlib.compress(bytes([0, int(f"{gray:0{depth}b}" * (8 // depth), 2) ^ (depth < 8)]))
        chunks = [(b"IHDR", size), (b"tRNS", struct.pack(">H", gray)), (b"IDAT", pixels), (b"IEND", b"")]
        png = PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks)
        other = (gray ^ 1) * 255 // top
        assert decoded(png)[0, :, 0].tolist() == [255] * (8 // depth - (depth < 8)) + [other] * (depth < 8)


@pytest.mark.parametrize("options", [{}, {"transparency": 1}])
def test_gif_is_white_outside_its_first_frame(options):
    frame = encoded(Image.new("L", (10, 5), 7), "GIF", **options)
    at = frame.index(b",")
    gif = frame[:6] + struct.pack("<HH", 30, 20) + frame[10 : at + 1] + struct.pack("<HH", 4, 6) + frame[at + 5 :]
    expected = np.full((20, 30, 3), 255, np.uint8)
    expected[6:11, 4:14] = 7
    assert_pixels(decoded(gif), expected)


@pytest.fixture
def processes(monkeypatch):
    """The commands of the processes that decode a WebP."""
    commands, start = [], webp.Popen
    monkeypatch.setattr(webp, "Popen", lambda *args, **kw: commands.append(args[0]) or start(*args, **kw))
    return commands


@pytest.mark.parametrize("method", [0, 4])
@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_decodes_ordinary_webp_files_as_pillow_does(processes, mode, lossless, method):
    image = Image.open(TENCH).convert(mode).convert("RGBA" if mode == "RGBA" else "RGB")
    if mode == "RGBA":
        image.putalpha(Image.effect_noise(image.size, 90))
    data = encoded(image, "WEBP", lossless=lossless, method=method)
    opened = open_image(data)
    expected = Image.open(io.BytesIO(data)).convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", expected.size, "white"), expected).convert("RGB")
    assert_pixels(np.asarray(to_rgb(opened)), on_white)
    assert len(processes) == (lossless or mode == "RGBA")
    assert_pixels(np.asarray(to_rgb(Image.open(io.BytesIO(data)))), on_white)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.parametrize(
    "make", [webp_of_groups, webp_of_alpha_groups, lambda *args: webp_animation(webp_of_groups(*args))]
)
def test_limits_the_memory_of_webp_tables(processes, make):
    assert decoded(make(512, 200)).shape == (512, 512, 3)
    for groups in (2_600, 16_000):
        image = open_image(make(512, groups))
        assert needed_bytes(image) < 25_000_000
        with pytest.raises(InvalidInput, match=r"WebP that cannot be read: .*save it as PNG or JPEG"):
            to_rgb(image)
    assert len(processes) == 3


def test_rejects_a_damaged_webp(processes):
    data = bytearray(encoded(Image.open(TENCH), "WEBP", lossless=True))
    data[40:80] = bytes(40)
    with pytest.raises(InvalidInput, match="WebP that cannot be read: it is damaged"):
        decoded(bytes(data))
    assert len(processes) == 1


def test_process_that_ends_before_it_reads_is_an_error(monkeypatch):
    def start_and_wait(command, **options):
        process = subprocess.Popen(["false"], **options)
        process.wait()
        return process

    monkeypatch.setattr(webp, "Popen", start_and_wait)
    with pytest.raises(InvalidInput, match="WebP that cannot be read: it is damaged"):
        decoded(encoded(Image.open(TENCH), "WEBP", lossless=True))


def test_signals_do_not_cut_what_the_process_reads():
    data = encoded(Image.effect_noise((512, 512), 80).convert("RGB"), "WEBP", lossless=True)  # more than a pipe holds
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with ThreadPoolExecutor(1) as pool:
            thread, decoding_it = pool.submit(threading.get_ident).result(), pool.submit(decoded, data)
            while not decoding_it.done():
                signal.pthread_kill(thread, signal.SIGUSR1)
                time.sleep(0.001)
        assert decoding_it.result().shape == (512, 512, 3)
    finally:
        signal.signal(signal.SIGUSR1, before)


ENDLESS = "while True: pass"
GREEDY = "memory = bytes(10**8)"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.parametrize(
    ("code", "max_bytes", "returncode"), [(ENDLESS, 10**9, -9), (GREEDY, 9 * 10**7, 1), (GREEDY, 2 * 10**8, 0)]
)
def test_limits_memory_and_cpu_time_of_the_process(code, max_bytes, returncode):
    script = f"""if True:
        import runpy, sys, PIL
        class PIL_webp:
            def WebPAnimDecoder(data):
                return PIL_webp
            def get_next():
                {code}
                return b"pixels", 0
        sys.modules["PIL._webp"] = PIL._webp = PIL_webp
        runpy.run_path({str(ROOT / "runtime/webp_process.py")!r})
    """
    command = [sys.executable, "-c", script, str(max_bytes), "1"]
    ran = subprocess.run(command, input=b"", capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (returncode, b"" if returncode else b"pixels")


def test_counts_and_limits_the_cpu_time_of_the_process(processes, monkeypatch):
    monkeypatch.setattr(decoding, "thread_time", lambda: 0.0)  # this process's own does not count
    data = encoded(Image.effect_noise((1_000, 1_000), 90).convert("RGB"), "WEBP", lossless=True, method=0)
    budget = CpuBudget()
    to_rgb(open_image(data, budget))
    assert decoding.MAX_CPU_S - budget.spend() > 0.02
    monkeypatch.setattr(decoding, "MAX_CPU_S", 0.02)
    with pytest.raises(InvalidInput, match="takes over"):
        decoded(data)
    assert [command[-1] for command in processes] == ["2", "1"]  # seconds


def test_starts_no_process_if_the_budget_is_overdrawn(processes, monkeypatch):
    image = open_image(encoded(Image.open(TENCH), "WEBP", lossless=True), budget := CpuBudget())
    with pytest.raises(InvalidInput, match="takes over"):
        budget.spend(3)
    with pytest.raises(InvalidInput, match="takes over"):
        to_rgb(image)
    assert processes == []


def test_process_that_cannot_be_started_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(Unavailable, match=r"cannot be started: .*/no/python"):
        decoded(encoded(Image.open(TENCH), "WEBP", lossless=True))


def test_counts_the_coefficients_of_several_scans():
    whole, parts = (encoded(Image.new("CMYK", (1_000, 1_000)), "JPEG"), jpeg_scans_of_three_components(1_000))
    assert needed_bytes(open_image(whole), 8) < 1_000_000
    assert needed_bytes(open_image(parts), 8) > 8_000_000
    for mode, kept in (("RGB", 3_000_000), ("L", 2_000_000), ("CMYK", 8_000_000)):
        progressive = encoded(Image.new(mode, (1_000, 1_000)), "JPEG", progressive=True)
        assert kept < needed_bytes(open_image(progressive), 8) < 1.5 * kept


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (jpeg_with(b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 8, 8, 3) + b"\1\x22\0\2\x11\1\3\x11\1"), "one frame"),
        (jpeg_with(b"\xff\xfe\0\2" * 100_000), "segments"),
        (png_with(png_chunk(b"teSt", b"") * 100_000), "chunks"),
        (encoded(Image.new("L", (16_000, 12_000)), "JPEG", progressive=True), "scans .*: save it as a baseline JPEG"),
        (lying("JPEG", encoded(Image.new("L", (9, 9)), "JPEG"), 40_000, 30_000), "40000x30000 pixels: resize it"),
    ],
    ids=["frames", "segments", "chunks", "scans of a large image", "pixels"],
)
def test_rejects_headers_that_no_encoder_writes(data, reason):
    with pytest.raises(InvalidInput, match=f"cannot be read: .*{reason}"):
        open_image(data)


def costly():
    """Return images of many kinds, most of 6 megapixels: name, file, and the scale to decode it at."""
    gray = Image.linear_gradient("L").resize((3_000, 2_000))
    color = Image.merge("RGB", (gray, gray, gray))
    clear = color.copy()
    clear.putalpha(gray)
    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "gray PNG": encoded(gray, "PNG", compress_level=1),
        "16-bit PNG": encoded(Image.new("I;16", gray.size), "PNG", compress_level=1),
        "PNG palette with transparency": encoded(gray.convert("P"), "PNG", transparency=3, compress_level=1),
        "PNG turned": encoded(clear, "PNG", exif=turned, compress_level=1),
        "lossy WebP": encoded(color, "WEBP", method=0, quality=5),
        "WebP with alpha": encoded(clear, "WEBP", method=0, quality=5, exif=turned),
        "lossless WebP": encoded(clear, "WEBP", method=0, lossless=True),
        "GIF": encoded(gray.convert("P"), "GIF", transparency=3),
        "GIF with a small frame": lying("GIF", encoded(Image.new("L", (9, 9)), "GIF"), *gray.size),
        "BMP": encoded(color, "BMP"),
        "BMP run-length encoded": bmp_rle(3_000, 2_000, (b"\xff\5" * 11 + b"\xc3\5\0\0") * 2_000),
        "JPEG": encoded(color, "JPEG"),
        "JPEG turned": encoded(color, "JPEG", exif=turned),
        "progressive JPEG": encoded(color, "JPEG", progressive=True, subsampling=0),
        "CMYK JPEG": encoded(clear.convert("CMYK"), "JPEG", progressive=True),
        "JPEG without its end": encoded(color, "JPEG", progressive=True)[:-2],
        "JPEG in parts": jpeg_scans_of_three_components(2_400),
        "tall JPEG": encoded(Image.new("L", (100, 65_500)), "JPEG"),
    }
    return [(name, data, 1) for name, data in images.items()] + [
        (f"{name} at 1/8", data, 8) for name, data in images.items() if "JPEG" in name
    ]


def test_decoding_stays_within_the_estimated_memory(tmp_path):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the peak of memory between two moments")
    script = r"""if True:
        import pickle, re, sys
        from pathlib import Path
        from model import ImagePreprocessor
        from runtime import decoding, memory

        def kb(name):
            return int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

        memory.configure_malloc()
        images = pickle.loads(sys.stdin.buffer.read())
        for _, data, scale in images:  # what stays in memory is then there already
            decoding.to_rgb(decoding.open_image(data), scale, ImagePreprocessor())
        for name, data, scale in images:
            memory.trim_heap()
            Path("/proc/self/clear_refs").write_text("5")
            before = kb("VmRSS")
            image = decoding.open_image(data)
            estimated = decoding.needed_bytes(image, scale) // 1000
            decoding.to_rgb(image, scale, ImagePreprocessor())
            del image
            print(name, kb("VmHWM") - before, estimated)
    """
    run = [sys.executable, "-c", script]
    output = subprocess.run(run, input=pickle.dumps(costly()), cwd=ROOT, check=True, capture_output=True).stdout
    for line in output.decode().splitlines():
        used, estimated = line.split()[-2:]
        assert int(used) < int(estimated) + 20_000, line  # KB, to convert a million pixels at a time
        assert int(used) > int(estimated) / 4 - 20_000, line


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP"])  # half a WebP does not even open
def test_errors_do_not_keep_the_image(file_format):
    data = encoded(Image.effect_noise((64, 64), 80).convert("RGB"), file_format)
    image = open_image(data[: len(data) // 2])
    watched = weakref.ref(image)
    gc.disable()
    try:
        with pytest.raises(InvalidInput):
            to_rgb(image)
        del image
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_limits_the_scans_of_a_jpeg_by_its_pixels(monkeypatch, mode):
    jpeg = encoded(Image.new(mode, (48, 32)), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    monkeypatch.setattr(stripping, "MAX_SCANNED_PIXELS", 40 * 48 * 32)
    more = 40 - jpeg.count(b"\xff\xda\0")
    open_image(jpeg[:-2] + last * more + jpeg[-2:]).load()
    with pytest.raises(InvalidInput, match="41 scans of 48x32 pixels: save it as a baseline JPEG"):
        open_image(jpeg[:-2] + last * (more + 1) + jpeg[-2:])


def test_limits_the_cpu_time_of_decoding(monkeypatch, quarters):
    budget = CpuBudget()
    opened = [open_image(encoded(quarters, "PNG"), budget) for _ in range(2)]
    to_rgb(opened[0])
    with pytest.raises(InvalidInput, match="takes over"):
        budget.spend(3)
    with pytest.raises(InvalidInput, match="takes over"):
        to_rgb(opened[1])
    monkeypatch.setattr(decoding, "MAX_CPU_S", -1)
    with pytest.raises(InvalidInput, match="takes over"):
        decoded(encoded(quarters, "PNG"))


def test_limits_the_cpu_time_of_converting(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(decoding, "thread_time", lambda: clock[0])
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 100)
    image, convert = open_image(encoded(Image.new("L", (100, 100)), "BMP")), decoding._on_white

    def slow(strip):
        clock[0] += 1.5
        return convert(strip)

    monkeypatch.setattr(decoding, "_on_white", slow)
    with pytest.raises(InvalidInput, match="takes over"):
        to_rgb(image, resize_for=ImagePreprocessor((9, 9)))
    assert clock[0] == 3


def test_uses_the_first_header_of_a_png():
    second = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    assert open_image(png_with(second)).size == (1, 1)


@pytest.mark.parametrize("data", CLAIMS.values(), ids=CLAIMS)
def test_opening_allocates_nothing_for_a_claimed_size(data):
    script = """if True:
        import resource, sys
        from runtime import decoding
        resource.setrlimit(resource.RLIMIT_AS, (4_000_000_000, 4_000_000_000))
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        try: print(decoding.open_image(sys.stdin.buffer.read()).size)
        except decoding.InvalidInput as error: print(error)
        sys.exit(peak() - before > 10_000)  # KB
    """
    subprocess.run([sys.executable, "-c", script], input=data, cwd=ROOT, check=True, timeout=60)
