"""model.py: every kind of picture becomes the right pixels, and the ONNX file's answers are those of its pixels."""

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser
from PIL import Image, ImageDraw

import decoding
from decoding import FORMATS
from model import ImagePreprocessor, InvalidImage, InvalidModel, OnnxClassifier

ROOT = Path(decoding.__file__).parent
MODEL_PATH = os.environ.get("MODEL_PATH") or ROOT / "classifier.onnx"
TENCH, NEWT = (ROOT / "images" / f"{name}.jpeg" for name in ("n01440764_tench", "n01632777_axolotl"))
BEST = {
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **BEST.get(file_format, {}) | options)
    return file.getvalue()


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


@pytest.fixture(scope="module")
def classifier():
    return OnnxClassifier(MODEL_PATH)


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
        pytest.param(dots("RGBA", (200, 0, 0, 0)), "WEBP", {"exact": True}, [[255] * 3], id="invisible WebP"),
        pytest.param(dots("1", 0, 255), "PNG", {}, [[0] * 3, [255] * 3], id="1 bit"),
        pytest.param(dots("1", 0, 255), "TIFF", {"compression": "group4"}, [[0] * 3, [255] * 3], id="a fax"),
        pytest.param(grey16(), "PNG", {}, [[v] * 3 for v in (0, 0, 1, 128, 255)], id="16-bit PNG"),
        pytest.param(grey16(), "TIFF", {}, [[v] * 3 for v in (0, 0, 1, 128, 255)], id="16-bit TIFF"),
        pytest.param(
            grey16(),
            "PNG",
            {"transparency": 256},
            [[v] * 3 for v in (0, 0, 255, 128, 255)],
            id="16-bit, one transparent",
        ),
        pytest.param(dots("CMYK", (0, 255, 255, 0)), "TIFF", {}, [[255, 0, 0]], id="CMYK TIFF"),
    ],
)
def test_every_mode_becomes_rgb_on_white(image, file_format, options, expected):
    assert_pixels(ImagePreprocessor().decode(encoded(image, file_format, **options)), [expected])


def test_a_cmyk_jpeg_has_the_colours_that_it_shows():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = np.full((16, 16, 3), (255, 0, 0))
    assert_pixels(ImagePreprocessor().decode(encoded(cmyk, "JPEG")), red, tolerance=4)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        *((file_format, {}) for file_format in FORMATS),
        ("JPEG", {"progressive": True}),
        ("TIFF", {"compression": "jpeg"}),
    ],
    ids=[*FORMATS, "progressive JPEG", "JPEG in TIFF"],
)
def test_every_format_opens(quarters, file_format, options):
    lossy = file_format in ("JPEG", "AVIF") or "compression" in options
    assert_pixels(ImagePreprocessor().decode(encoded(quarters, file_format, **options)), quarters, tolerance=12 * lossy)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several_counts(quarters, file_format):
    more = [Image.new("RGB", quarters.size, colour) for colour in ("black", "yellow")]
    data = encoded(quarters, file_format, save_all=True, append_images=more)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert_pixels(ImagePreprocessor().decode(data), quarters)


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
    assert_pixels(ImagePreprocessor().decode(encoded(photograph, "JPEG", exif=exif)), quarters, tolerance=12)


def test_bytes_path_text_and_image_give_the_same_pixels():
    preprocessor = ImagePreprocessor()
    expected = preprocessor(TENCH.read_bytes())
    for source in (TENCH, str(TENCH), Image.open(TENCH)):
        np.testing.assert_array_equal(preprocessor(source), expected)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(Image.new("RGB", (9, 9)), "PPM"), id="PPM"),
        pytest.param(encoded(Image.new("RGB", (16, 16)), "ICO"), id="ICO"),
        pytest.param(encoded(Image.new("RGB", (9, 9)), "EPS"), id="EPS, which runs Ghostscript"),
        pytest.param(encoded(Image.new("RGB", (9, 9)), "PDF"), id="PDF"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="SVG"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"garbage" * 99, id="garbage"),
        pytest.param(b"\xff\xd8\xff\xe0garbage", id="garbage under a JPEG's first bytes"),
    ],
)
def test_what_is_no_picture_or_of_another_format_is_refused(data):
    with pytest.raises(InvalidImage, match=r"not a picture: send one of JPEG, PNG, .*AVIF$|header is damaged"):
        ImagePreprocessor()(data)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_file_is_refused_with_a_sentence(file_format):
    data = encoded(Image.effect_noise((64, 64), 80).convert("RGB"), file_format)
    with pytest.raises(InvalidImage) as refused:
        ImagePreprocessor()(data[: len(data) // 2])
    assert " at 0x" not in str(refused.value)


def test_an_avif_that_holds_nothing_is_refused(quarters):
    header, mark, pixels = encoded(quarters, "AVIF").partition(b"mdat")
    with pytest.raises(InvalidImage, match="the AVIF is damaged"):
        ImagePreprocessor()(header + mark + bytes(len(pixels)))


def test_32_bits_a_pixel_are_refused():
    with pytest.raises(InvalidImage, match="save it with 8 or 16"):
        ImagePreprocessor()(encoded(Image.new("F", (2, 2)), "TIFF"))


@pytest.mark.parametrize("file_format", FORMATS)
def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch, quarters, file_format):
    class Decoded(Exception):
        pass

    def decode(*_, **__):
        raise Decoded

    data = encoded(quarters, file_format)
    monkeypatch.setattr(type(Image.open(io.BytesIO(data))), "load", decode)
    monkeypatch.setattr(decoding, "decode_jpeg", decode)
    with pytest.raises(InvalidImage, match="48x32 pixels; at most 1535 are taken"):
        ImagePreprocessor(max_pixels=48 * 32 - 1)(data)
    with pytest.raises(Decoded):
        ImagePreprocessor(max_pixels=48 * 32)(data)


def test_a_decompression_bomb_is_refused(quarters):
    data = bytearray(encoded(quarters, "BMP"))
    data[18:26] = struct.pack("<ii", 20_000, 20_000)  # width and height
    with pytest.raises(InvalidImage, match=r"400000000 pixels|20000x20000 pixels"):
        ImagePreprocessor()(bytes(data))


def test_a_side_that_is_too_long_is_refused():
    with pytest.raises(InvalidImage, match=r"65536x1 pixels; .* at most 65535 a side"):
        ImagePreprocessor()(encoded(Image.new("L", (65_536, 1)), "PNG"))
    assert ImagePreprocessor()(encoded(Image.new("L", (65_535, 1)), "PNG")).shape == (224, 224, 3)


def test_too_many_bytes_are_refused(quarters):
    data = encoded(quarters, "PNG")
    assert ImagePreprocessor(max_bytes=len(data))(data).shape == (224, 224, 3)
    with pytest.raises(InvalidImage, match=f"has {len(data)} bytes; at most {len(data) - 1} are taken"):
        ImagePreprocessor(max_bytes=len(data) - 1)(data)


def test_a_file_of_too_many_bytes_is_refused_unread(monkeypatch, tmp_path):
    (tmp_path / "large").write_bytes(b"x" * 11)
    monkeypatch.delattr(Path, "read_bytes")
    with pytest.raises(InvalidImage, match="has 11 bytes; at most 10 are taken"):
        ImagePreprocessor(max_bytes=10)(tmp_path / "large")


def test_a_folder_or_an_absent_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent.png"):
        with pytest.raises(InvalidImage, match=f"{path} cannot be read: "):
            ImagePreprocessor()(path)


@pytest.mark.parametrize("size", [(224, 224), (10, 20)])
def test_resize_is_pillows_antialiased_bilinear(size):
    picture = np.random.default_rng(0).integers(0, 256, (301, 97, 3), np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR))
    assert expected.shape == (*size, 3)
    for source in (picture, Image.fromarray(picture)):
        np.testing.assert_array_equal(ImagePreprocessor(size).resize(source), expected)


def test_normalize_is_the_formula_with_channels_first():
    pixels = np.arange(256 * 3, dtype=np.uint8).reshape(2, 8, 16, 3)
    preprocessor = ImagePreprocessor()
    normalized = preprocessor.normalize(pixels)
    assert (normalized.shape, normalized.dtype) == ((2, 3, 8, 16), np.float32)
    for channel, (mean, std) in enumerate(zip(preprocessor.mean, preprocessor.std, strict=True)):
        expected = (pixels[..., channel].astype(np.float64) / 255 - mean) / std
        np.testing.assert_allclose(normalized[:, channel], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("picture", "class_id", "class_name"), [(TENCH, 0, "tench"), (NEWT, 26, "common newt")])
def test_a_picture_is_reported_as_its_class_also_where_that_is_0(classifier, picture, class_id, class_name):
    ((best, *_),) = classifier.classify([picture])
    assert (best.class_id, best.class_name) == (class_id, class_name)
    assert 0.5 < best.probability <= 1


def test_probabilities_sum_to_1(classifier):
    noise = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    probabilities = classifier.predict(noise)
    assert (probabilities.shape, probabilities.dtype) == ((3, 1000), np.float32)
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-4)


@pytest.mark.parametrize("top_k", [1, 5, 1000])
def test_the_top_k_come_in_descending_order_with_their_own_names(classifier, top_k):
    (predictions,) = classifier.classify([NEWT], top_k)
    row = classifier.predict(classifier.preprocessor(NEWT)[None])[0]
    assert [p.probability for p in predictions] == sorted(map(float, row), reverse=True)[:top_k]
    assert all(p.class_name == classifier.class_names[p.class_id] for p in predictions)
    assert all(p.probability == row[p.class_id] for p in predictions)


def test_of_equal_probabilities_the_lower_id_comes_first(classifier):
    row = np.full(1000, 0.001, np.float32)
    row[[700, 300]] = 0.1
    assert [p.class_id for p in classifier.top(row, 5)] == [300, 700, 0, 1, 2]


def test_a_batch_of_two_gives_what_each_gives_alone(classifier):
    pixels = [classifier.preprocessor(picture) for picture in (TENCH, NEWT)]
    alone = np.concatenate([classifier.predict(one[None]) for one in pixels])
    np.testing.assert_allclose(classifier.predict(np.stack(pixels)), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("picture", [TENCH, NEWT], ids=["tench", "newt"])
def test_the_graphs_own_resize_gives_what_the_preprocessors_gives(classifier, picture):
    raw = classifier.predict(classifier.preprocessor.decode(picture)[None])
    prepared = classifier.predict(classifier.preprocessor(picture)[None])
    np.testing.assert_allclose(raw, prepared, atol=5e-3, rtol=0)


@pytest.mark.parametrize("size", [(224, 224), (7, 9), (2, 1), (1, 5)])
@pytest.mark.parametrize("side", [(500, 375), (233, 188), (1, 1), (900, 3), (31, 1201)])
def test_a_lone_callers_picture_is_resized_in_halves_to_the_same_pixels(size, side):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*side[::-1], 3), np.uint8))
    whole = ImagePreprocessor(size).prepare(picture, threads=2).pixels.astype(int)
    halves = ImagePreprocessor(size, exact=False).prepare(picture, threads=2).pixels
    assert halves.shape == whole.shape
    assert abs(halves - whole).max() <= 1
    if side == (500, 375) and size == (224, 224):
        assert (halves == whole).all()


def test_the_callers_pixel_limit_reaches_the_preprocessor():
    with pytest.raises(InvalidImage, match="at most 100 are taken"):
        OnnxClassifier(MODEL_PATH, max_pixels=100).classify([TENCH])


def foreign(**metadata):
    graph = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[1] x) => (float[1] y) {y = Identity (x)}'
    )
    onnx.helper.set_model_props(graph, metadata)
    return graph.SerializeToString()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"garbage" * 99, id="garbage"),
        pytest.param(foreign(), id="ONNX without our metadata"),
        pytest.param(foreign(model="m", class_names="[]", preprocessing="{"), id="metadata that is not JSON"),
        pytest.param(foreign(model="m", class_names="[]", preprocessing="{}"), id="metadata without a size"),
        pytest.param(foreign().replace(b"Identity", b"\x8edentity"), id="damaged text"),
    ],
)
def test_a_file_that_the_converter_did_not_write_is_refused(tmp_path, content):
    (tmp_path / "some.onnx").write_bytes(content)
    with pytest.raises(InvalidModel, match=r"some.onnx is not a file that convert_to_onnx.py wrote"):
        OnnxClassifier(tmp_path / "some.onnx")


def test_an_absent_file_is_refused_with_what_makes_it(tmp_path):
    with pytest.raises(InvalidModel, match=r"absent.onnx is not there: make it with `python convert_to_onnx.py`"):
        OnnxClassifier(tmp_path / "absent.onnx")


def test_serving_does_not_import_pytorch():
    code = "import model, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_whose_exif_cannot_be_read_is_taken_as_it_lies(quarters, file_format):
    data = encoded(quarters, file_format, exif=b"Exif\0\0this is not EXIF")
    np.testing.assert_allclose(ImagePreprocessor().decode(data), np.asarray(quarters), atol=12)
