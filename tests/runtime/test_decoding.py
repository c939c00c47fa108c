"""decoding.py: every kind of picture becomes RGB, upright and on white, and what is no picture is refused."""

import gc
import io
import subprocess
import sys
import weakref

import numpy as np
import pytest
from PIL import Image, ImageDraw

from runtime import decoding
from runtime.decoding import FORMATS, MAX_EXIF, open_image, to_rgb
from runtime.errors import InvalidInput
from tests.hostile import encoded, gif_with_disposal, lying, webp_canvas
from tests.server_process import ROOT

BEST = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": "4:4:4"}}


def decoded(data):
    return np.asarray(to_rgb(open_image(data)))


def dots(mode, *values):
    """A picture one pixel high."""
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def grey16():
    return Image.fromarray(np.array([[0, 255, 256, 0x80FF, 0xFFFF]], np.uint16))


def palette():
    image = dots("P", 0, 1)
    image.putpalette([10, 20, 30, 200, 100, 0])
    return image


@pytest.fixture
def quarters():
    """Another colour in each quarter and unequal sides, so that no turn or flip leaves it as it was."""
    image = Image.new("RGB", (48, 32), "red")
    draw = ImageDraw.Draw(image)
    for corner, colour in [((24, 0), "lime"), ((0, 16), "blue"), ((24, 16), "white")]:
        draw.rectangle((*corner, corner[0] + 23, corner[1] + 15), colour)
    return image


def assert_pixels(actual, expected, tolerance=0):
    assert actual.dtype == np.uint8
    np.testing.assert_allclose(actual.astype(int), np.asarray(expected).astype(int), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("image", "file_format", "options", "expected"),
    [
        pytest.param(dots("L", 0, 100), "PNG", {}, [[0] * 3, [100] * 3], id="grey"),
        pytest.param(dots("L", 0, 100), "PNG", {"transparency": 100}, [[0] * 3, [255] * 3], id="grey, one transparent"),
        pytest.param(dots("LA", (100, 255), (100, 0)), "PNG", {}, [[100] * 3, [255] * 3], id="grey and alpha"),
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
        pytest.param(grey16(), "PNG", {}, [[v] * 3 for v in (0, 0, 1, 128, 255)], id="16-bit PNG"),
        pytest.param(
            grey16(),
            "PNG",
            {"transparency": 256},
            [[v] * 3 for v in (0, 0, 255, 128, 255)],
            id="16-bit, one transparent",
        ),
    ],
)
def test_every_mode_becomes_rgb_on_white(image, file_format, options, expected):
    assert_pixels(decoded(encoded(image, file_format, **options)), [expected])


def test_a_cmyk_jpeg_has_the_colours_that_it_shows():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = np.full((16, 16, 3), (255, 0, 0))
    assert_pixels(decoded(encoded(cmyk, "JPEG", **BEST["JPEG"])), red, tolerance=4)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [*((file_format, {}) for file_format in FORMATS), ("JPEG", {"progressive": True})],
    ids=[*FORMATS, "progressive JPEG"],
)
def test_every_format_opens(quarters, file_format, options):
    data = encoded(quarters, file_format, **BEST.get(file_format, {}) | options)
    assert_pixels(decoded(data), quarters, tolerance=12 * (file_format == "JPEG"))


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_several_counts(quarters, file_format):
    more = [Image.new("RGB", quarters.size, colour) for colour in ("black", "yellow")]
    data = encoded(quarters, file_format, save_all=True, append_images=more, **BEST.get(file_format, {}))
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert_pixels(decoded(data), quarters)


def test_of_a_jpeg_of_several_images_the_first_counts(quarters):
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
def test_a_photograph_comes_out_upright(quarters, orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph = Image.fromarray(np.ascontiguousarray(stored(np.asarray(quarters))))
    assert_pixels(decoded(encoded(photograph, "JPEG", exif=exif, **BEST["JPEG"])), quarters, tolerance=12)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_whose_exif_cannot_be_read_is_taken_as_it_lies(quarters, file_format):
    data = encoded(quarters, file_format, exif=b"Exif\0\0this is not EXIF", **BEST.get(file_format, {}))
    assert_pixels(decoded(data), quarters, tolerance=12)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_too_much_exif_is_refused(quarters, file_format):
    most = bytes(MAX_EXIF - len(b"Exif\0\0"))  # which Pillow puts in front of a PNG's
    assert_pixels(decoded(encoded(quarters, file_format, exif=most, **BEST.get(file_format, {}))), quarters)
    with pytest.raises(InvalidInput, match="more than 500000 bytes of EXIF: save it without"):
        decoded(encoded(quarters, file_format, exif=bytes(MAX_EXIF + 1)))


@pytest.mark.parametrize(
    "file_format",
    ["TIFF", "AVIF", "DDS", "DIB", "EPS", "ICNS", "ICO", "JPEG2000", "PCX", "PPM", "QOI", "SGI", "TGA"],
)
def test_another_format_of_pillows_is_refused_in_words_that_name_the_five(file_format):
    data = encoded(Image.new("RGB", (16, 16)), file_format)
    assert Image.open(io.BytesIO(data)).format == file_format
    with pytest.raises(InvalidInput, match=r"^not a picture: send one of JPEG, PNG, WEBP, GIF, BMP$"):
        open_image(data)


def test_no_other_decoder_is_even_imported():
    script = (
        "import sys; from runtime import decoding\n"
        "try: decoding.open_image(sys.stdin.buffer.read())\nfinally: print(*sys.modules)"
    )
    tiff = encoded(Image.new("RGB", (16, 16)), "TIFF")
    ran = subprocess.run([sys.executable, "-c", script], input=tiff, cwd=ROOT, capture_output=True, check=False)
    plugins = {name for name in ran.stdout.decode().split() if name.endswith("ImagePlugin")}
    # Pillow itself imports that of PPM, which it does not try.
    assert plugins == {f"PIL.{name}ImagePlugin" for name in ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Ppm")}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(Image.new("RGB", (9, 9)), "PDF"), id="PDF"),
        pytest.param(b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\t\0\0\0\t\0\x08\0\3" + bytes(400), id="PSD"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="SVG"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"garbage" * 99, id="garbage"),
        pytest.param(b"\xff\xd8\xff\xe0garbage", id="garbage under a JPEG's first bytes"),
    ],
)
def test_what_is_no_picture_or_of_another_format_is_refused(data):
    with pytest.raises(InvalidInput, match=r"not a picture: send one of JPEG, PNG, .*BMP$|header is damaged"):
        decoded(data)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_file_is_refused_with_a_sentence(file_format):
    data = encoded(Image.effect_noise((64, 64), 80).convert("RGB"), file_format)
    with pytest.raises(InvalidInput) as refused:
        decoded(data[: len(data) // 2])
    assert " at 0x" not in str(refused.value)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP"])  # half a WebP does not even open
def test_an_error_that_is_gone_keeps_no_picture(file_format):
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
def test_a_jpeg_of_more_than_32_scans_is_refused(mode):
    jpeg = encoded(Image.new(mode, (48, 32)), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    more = 32 - jpeg.count(b"\xff\xda\0")
    assert more > 0  # so what an encoder writes is taken
    open_image(jpeg[:-2] + last * more + jpeg[-2:]).load()
    with pytest.raises(InvalidInput, match="more than 32 scans: save it anew"):
        open_image(jpeg[:-2] + last * (more + 1) + jpeg[-2:])


def test_reading_a_picture_has_an_end(monkeypatch, quarters):
    monkeypatch.setattr(decoding, "MAX_CPU_S", -1)
    with pytest.raises(InvalidInput, match="too long"):
        decoded(encoded(quarters, "PNG"))


CLAIMS = {name: lying(name, encoded(Image.new("L", (1, 1)), name), 2**31, 2**31) for name in FORMATS} | {
    "GIF with disposal to the background": gif_with_disposal(2),
    "GIF with disposal to the previous frame": gif_with_disposal(3),
    "GIF frame beyond its canvas": gif_with_disposal(2).replace(b"GIF89a\xff\xff\xff\xff", b"GIF89a\1\0\1\0"),
    "WebP canvas": webp_canvas(16_383, 16_383),
}


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
