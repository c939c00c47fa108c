"""model.py: images within the limits become the right pixels, and the file classifies them."""

import io

import numpy as np
import onnx
import pytest
from onnx import parser
from PIL import Image, ImageOps

from model import REDUCE_FROM_PIXELS, ImagePreprocessor, OnnxClassifier
from runtime import decoding
from runtime.decoding import FORMATS
from runtime.errors import InvalidInput, InvalidModel
from tests.malicious_images import encoded
from tests.server_process import MODEL_PATH, NEWT, TENCH


@pytest.fixture(scope="module")
def classifier():
    return OnnxClassifier(MODEL_PATH)


def test_accepts_bytes_path_and_image():
    preprocessor = ImagePreprocessor()
    expected = preprocessor(TENCH.read_bytes())
    for source in (TENCH, str(TENCH), Image.open(TENCH)):
        np.testing.assert_array_equal(preprocessor(source), expected)


@pytest.mark.parametrize("file_format", FORMATS)
def test_rejects_costly_images_before_decoding(monkeypatch, file_format):
    class Decoded(BaseException):
        pass

    def decode(*_, **__):
        raise Decoded

    data = encoded(Image.new("RGB", (1500, 1000)), file_format)
    opened = decoding.open_image(data)
    needed_mb = decoding.needed_bytes(opened) // 1_000_000
    monkeypatch.setattr(type(opened), "load", decode)
    with pytest.raises(InvalidInput, match=rf"1500x1000 pixels.* {needed_mb} MB.* {needed_mb - 1} MB"):
        ImagePreprocessor(max_image_mb=needed_mb - 1)(data)
    with pytest.raises(Decoded):
        ImagePreprocessor(max_image_mb=needed_mb)(data)


@pytest.mark.parametrize(
    ("size", "mode", "file_format", "options"),
    [
        ((8064, 6048), "RGB", "JPEG", {}),
        ((8064, 6048), "RGB", "JPEG", {"progressive": True}),
        ((12_000, 9_000), "RGB", "JPEG", {}),
        ((16_320, 12_240), "RGB", "JPEG", {}),
        ((4960, 7016), "L", "JPEG", {}),
        ((4960, 7016), "1", "PNG", {}),
        ((7680, 4320), "RGBA", "PNG", {"compress_level": 1}),
        ((1080, 24_000), "RGB", "PNG", {"compress_level": 1}),
        ((4096, 4096), "RGBA", "WEBP", {"lossless": True, "method": 0}),
    ],
)
def test_accepts_large_photos_scans_and_screenshots(size, mode, file_format, options):
    preprocessor = ImagePreprocessor(full_resolution=False)
    image = preprocessor.open(encoded(Image.new(mode, size), file_format, **options))
    assert image.size == size
    if mode == "1":
        assert preprocessor(encoded(Image.new(mode, size, 1), file_format)).min() == 255


def test_full_resolution_needs_more_memory():
    data = encoded(Image.new("RGB", (10_000, 11_000)), "JPEG")
    assert ImagePreprocessor(full_resolution=False)(data).shape == (224, 224, 3)
    with pytest.raises(InvalidInput, match="PRECISION=auto would accept it"):
        ImagePreprocessor()(data)
    with pytest.raises(InvalidInput, match=r"resize it$"):
        ImagePreprocessor()(encoded(Image.new("1", (20_000, 21_000)), "PNG"))
    with pytest.raises(InvalidInput, match="resize it"):
        ImagePreprocessor(full_resolution=False).decode(data)


def test_rejects_a_side_of_over_65535():
    with pytest.raises(InvalidInput, match=r"65536x1 pixels; .* 65535 per side"):
        ImagePreprocessor()(encoded(Image.new("L", (65_536, 1)), "PNG"))
    assert ImagePreprocessor()(encoded(Image.new("L", (65_535, 1)), "PNG")).shape == (224, 224, 3)


def large_jpeg(width, height):
    return encoded(Image.open(TENCH).resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=92)


def test_decodes_large_jpegs_at_a_reduced_scale(classifier):
    data = large_jpeg(4000, 3000)
    exact, reduced = ImagePreprocessor(), ImagePreprocessor(full_resolution=False)
    assert (exact(data) != reduced(data)).any()
    assert np.abs(exact(data).astype(int) - reduced(data)).mean() < 1
    np.testing.assert_allclose(
        classifier.predict(reduced(data)[None]), classifier.predict(exact(data)[None]), atol=0.02
    )
    assert OnnxClassifier(MODEL_PATH, "cpu", "f32").preprocessor.full_resolution
    assert not OnnxClassifier(MODEL_PATH, "cpu", "auto").preprocessor.full_resolution


@pytest.mark.parametrize(("longer_side", "scale"), [(100, 8), (200, 4), (400, 2), (450, 1)])
def test_reduced_scale_covers_the_longer_side_four_times(longer_side, scale):
    data = large_jpeg(4000, 3300)
    reduced = Image.open(io.BytesIO(data))
    reduced.draft(None, (4000 // scale, 3300 // scale))
    expected = np.asarray(reduced.resize((longer_side, 100), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(ImagePreprocessor((100, longer_side), full_resolution=False)(data), expected)


def test_decodes_other_jpegs_at_full_resolution():
    data = large_jpeg(2000, REDUCE_FROM_PIXELS // 2000 - 1)
    np.testing.assert_array_equal(ImagePreprocessor(full_resolution=False)(data), ImagePreprocessor()(data))


@pytest.mark.parametrize("size", [(224, 224), (10, 20)])
def test_resizes_like_pillow_with_antialiasing(size):
    image = np.random.default_rng(0).integers(0, 256, (301, 97, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    assert expected.shape == (*size, 3)
    np.testing.assert_array_equal(ImagePreprocessor(size).resize(image), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_strips_have_the_pixels_of_the_whole(monkeypatch, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(NEWT).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, "PNG", exif=exif)))).convert("RGBA")
    whole = np.asarray(Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB"))
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 10_000)
    preprocessor, data = ImagePreprocessor((10, 20)), encoded(image, "PNG", exif=exif)
    np.testing.assert_array_equal(preprocessor.decode(data), whole)
    np.testing.assert_array_equal(preprocessor(data), preprocessor.resize(whole))


def test_normalizes_by_the_formula_channels_first():
    pixels = np.arange(256 * 3, dtype=np.uint8).reshape(2, 8, 16, 3)
    preprocessor = ImagePreprocessor()
    normalized = preprocessor.normalize(pixels)
    assert (normalized.shape, normalized.dtype) == ((2, 3, 8, 16), np.float32)
    for channel, (mean, std) in enumerate(zip(preprocessor.mean, preprocessor.std, strict=True)):
        expected = (pixels[..., channel].astype(np.float64) / 255 - mean) / std
        np.testing.assert_allclose(normalized[:, channel], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("image", "class_id", "class_name"), [(TENCH, 0, "tench"), (NEWT, 26, "common newt")])
def test_classifies_both_images(classifier, image, class_id, class_name):
    best = classifier.top(classifier.predict(classifier.preprocessor(image)[None])[0], 5)[0]
    assert (best["class_id"], best["class_name"]) == (class_id, class_name)
    assert 0.5 < best["probability"] <= 1


def test_probabilities_sum_to_1(classifier):
    noise = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    probabilities = classifier.predict(noise)
    assert (probabilities.shape, probabilities.dtype) == ((3, 1000), np.float32)
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-4)


@pytest.mark.parametrize("top_k", [1, 5, 10, 11, 1000, 1001])
def test_top_k_is_descending_with_matching_names(classifier, top_k):
    row = classifier.predict(classifier.preprocessor(NEWT)[None])[0]
    predictions = classifier.top(row, top_k)
    assert [p["probability"] for p in predictions] == sorted(map(float, row), reverse=True)[:top_k]
    assert all(p["class_name"] == classifier.class_names[p["class_id"]] for p in predictions)
    assert all(p["probability"] == row[p["class_id"]] for p in predictions)


@pytest.mark.parametrize("top_k", [2, 10, 11, 100])
def test_lower_id_first_among_equal_probabilities(classifier, top_k):
    row = np.full(1000, 0.001, np.float32)
    row[[700, 300]] = 0.1
    assert [p["class_id"] for p in classifier.top(row, top_k)] == [300, 700, *range(top_k - 2)]


def test_batch_equals_single_images(classifier):
    pixels = [classifier.preprocessor(image) for image in (TENCH, NEWT)]
    alone = np.concatenate([classifier.predict(one[None]) for one in pixels])
    np.testing.assert_allclose(classifier.predict(np.stack(pixels)), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("image", [TENCH, NEWT], ids=["tench", "newt"])
def test_graph_resize_matches_the_preprocessor(classifier, image):
    raw = classifier.predict(classifier.preprocessor.decode(image)[None])
    prepared = classifier.predict(classifier.preprocessor(image)[None])
    np.testing.assert_allclose(raw, prepared, atol=5e-3, rtol=0)
    assert (raw != prepared).any()  # the graph has resized


def test_passes_the_memory_limit_on():
    with pytest.raises(InvalidInput, match="the limit is 1 MB"):
        OnnxClassifier(MODEL_PATH, max_image_mb=1).preprocessor(np.zeros((900, 900, 3), np.uint8))


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
def test_rejects_files_of_other_origin(tmp_path, content):
    (tmp_path / "some.onnx").write_bytes(content)
    with pytest.raises(InvalidModel, match=r"some.onnx .*convert_to_onnx.py"):
        OnnxClassifier(tmp_path / "some.onnx")


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises(InvalidModel, match=r"absent.onnx is not there: make it with `python convert_to_onnx.py`"):
        OnnxClassifier(tmp_path / "absent.onnx")


def test_rejects_a_folder_as_model(tmp_path):
    with pytest.raises(InvalidModel, match="is not a file that can be read: make it with"):
        OnnxClassifier(tmp_path)
