"""app.py: the inputs and responses of Banana's contract, without HTTP."""

import base64
import gc
import itertools
import json
import weakref
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import app
from model import ImagePreprocessor
from runtime import decoding
from runtime.base64_text import decode_base64
from runtime.errors import InvalidInput, Unavailable
from runtime.inputs import LargeImageSlot
from tests.imports import needed, packages
from tests.malicious_images import encoded, huge
from tests.server_process import DEADLINE_S, NEWT, ROOT, TENCH


@pytest.fixture(scope="module", autouse=True)
def initialized():
    app.init()


def test_classifies_bytes_and_base64_alike():
    example = json.loads((ROOT / "banana_config.json").read_text())["example_input"]
    by_bytes = app.inference({**example, "image": base64.b64decode(example["image"])})
    by_text = app.inference(example)
    assert by_bytes["predictions"] == by_text["predictions"]


def in_lines(text: str) -> str:
    """Return the text in lines of 76 characters, as in MIME."""
    return "".join(f"{text[at : at + 76]}\r\n" for at in range(0, len(text), 76))


def percent_encoded(text: str) -> str:
    """Return the text as one value of a query, with lower-case escapes."""
    return "".join(f"%{ord(letter):02x}" if letter in "+/=\r\n" else letter for letter in in_lines(text))


@pytest.mark.parametrize("write", [in_lines, percent_encoded, "data:image/jpeg;base64,{}".format, "\t {} \n".format])
@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padding", ["=", ""])
def test_accepts_base64_in_every_usual_form(write, alphabet, padding):
    for image in (bytes(range(256)), b"\xfb\xff\xfe?", b"hi", b"12345"):
        text = write(alphabet(image).decode().replace("=", padding))
        assert decode_base64(text) == image


@pytest.mark.parametrize(
    "text", ["@", "a", "aGk=!", "!aGk=", "aGk=aGk=", "aG=k", "aGk==", "aG=", "=", "+/-_", "aG\0k", "aG\u00e9k", "aG,k"]
)
def test_rejects_text_that_is_not_base64(text):
    for written in (text, f"data:image/png;base64,{text}"):
        with pytest.raises(InvalidInput, match=r"^(?!images\[).*base64"):
            app.inference({"image": written})
        with pytest.raises(InvalidInput, match=r"^images\[1\]: .*base64"):
            app.inference({"images": [NEWT.read_bytes(), written]})


def test_classifies_pixels_like_their_file():
    pixels = np.asarray(Image.open(NEWT).convert("RGB"))
    by_pixels, by_file = (app.inference({"image": image}) for image in (pixels, NEWT.read_bytes()))
    assert by_pixels["predictions"] == by_file["predictions"]


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), "u1")],
)
def test_rejects_pixels_of_another_shape_or_dtype(pixels):
    with pytest.raises(InvalidInput, match="uint8"):
        app.inference({"image": pixels})


def test_gives_the_response_in_banana_config():
    config = json.loads((ROOT / "banana_config.json").read_text())
    expected = config["example_output"]
    answer = app.inference(config["example_input"])
    assert answer.keys() == expected.keys()
    assert (answer["class_id"], answer["class_name"]) == (expected["class_id"], expected["class_name"])
    assert answer["timing_ms"].keys() == expected["timing_ms"].keys()
    if app.status()["model"] == "efficientnet-lite0":  # the model that gave the example's numbers
        assert answer["probability"] == pytest.approx(expected["probability"], abs=0.05)


def test_reports_class_0():
    answer = app.inference({"image": TENCH.read_bytes()})
    assert (answer["class_id"], answer["predictions"][0]["class_id"]) == (0, 0)


def test_top_k_above_the_number_of_classes_returns_all():
    predictions = app.inference({"image": TENCH.read_bytes(), "top_k": 5000})["predictions"]
    assert sorted(prediction["class_id"] for prediction in predictions) == list(range(1000))


def test_returns_a_list_for_a_list_of_one():
    answer = app.inference({"images": [NEWT.read_bytes()]})
    assert [result["class_id"] for result in answer["results"]] == [26]


def test_leaves_two_workers_to_small_images():
    large, small = huge("PNG", 3_000, 3_000), NEWT.read_bytes()
    with ThreadPoolExecutor(app.WORKERS) as callers:
        with app.large_images.hold():
            calls = [callers.submit(app.inference, {"image": large}) for _ in range(app.WORKERS)]
            ended = itertools.islice(as_completed(calls, timeout=DEADLINE_S), 3)  # one place is held here
            refused = [call.exception() for call in ended]
            assert [type(error) for error in refused] == [Unavailable] * 3
            assert "large images" in str(refused[0])
            assert sum(call.done() for call in calls) == 3
            assert app.inference({"image": small})["class_id"] == 26
        assert sum(call.exception() is None for call in calls) == app.WORKERS - 3


def test_takes_the_slot_once_per_request(monkeypatch):
    monkeypatch.setattr(app, "large_images", LargeImageSlot(1))
    large = huge("PNG", 3_000, 3_000)
    results = app.inference({"images": [large, large]})["results"]
    assert [result["image"]["width"] for result in results] == [3_000, 3_000]
    with pytest.raises(InvalidInput, match="incomplete"):
        app.inference({"image": large[:-100]})
    app.inference({"image": large})  # the request that failed has released the slot


def large_file(size):
    return huge("PNG", 5, 5).ljust(size, b"\0")


def test_frees_an_image_before_it_releases_the_slot(monkeypatch):
    opened, freed = [], []
    original = ImagePreprocessor.open

    def recorded(self, source, budget=None):
        image = original(self, source, budget)
        opened.append(weakref.ref(image))
        return image

    class WatchedSlot(LargeImageSlot):
        @contextmanager
        def hold(self):
            with super().hold():
                try:
                    yield
                finally:
                    freed.append(opened[0]() is None)

    monkeypatch.setattr(ImagePreprocessor, "open", recorded)
    monkeypatch.setattr(app, "large_images", WatchedSlot(1))
    gc.disable()
    try:
        with pytest.raises(InvalidInput, match="incomplete"):
            app.inference({"image": huge("PNG", 3_000, 3_000)[:-100]})
    finally:
        gc.enable()
    assert freed == [True]


@pytest.mark.parametrize(
    ("data", "large"),
    [
        pytest.param(encoded(Image.new("RGB", (2_700, 2_700)), "PNG"), False, id="PNG"),
        pytest.param(encoded(Image.new("RGB", (2_900, 2_900)), "PNG"), True, id="large PNG"),
        pytest.param(encoded(Image.new("L", (5_500, 5_000)), "PNG"), True, id="gray"),
        pytest.param(encoded(Image.new("RGB", (1_500, 1_500)), "WEBP"), True, id="large WebP"),
        pytest.param(encoded(Image.new("RGB", (1_300, 1_300)), "WEBP"), False, id="WebP"),
        pytest.param(encoded(Image.new("RGB", (6_000, 4_000)), "JPEG"), False, id="JPEG"),
        pytest.param(
            encoded(Image.new("RGB", (10_000, 1_700)), "JPEG"), True, id="too short a side for a reduced scale"
        ),
        pytest.param(encoded(Image.new("RGB", (4_000, 3_000)), "JPEG", progressive=True), True, id="progressive"),
        pytest.param(large_file(31_000_000), False, id="bytes"),
        pytest.param(large_file(33_000_000), True, id="many bytes"),
        pytest.param(np.zeros((2_900, 2_900, 3), np.uint8), True, id="pixels"),
    ],
)
def test_images_that_need_much_memory_take_turns(monkeypatch, data, large):
    monkeypatch.setattr(app, "large_images", LargeImageSlot(1))
    with app.large_images.hold():
        if large:
            with pytest.raises(Unavailable, match="large images"):
                app.inference({"image": data})
        else:
            app.inference({"image": data})
    app.inference({"image": data})


def test_large_jpegs_at_full_resolution_take_turns():
    data = encoded(Image.new("RGB", (6_000, 4_000)), "JPEG")
    for full_resolution in (False, True):
        preprocessor = replace(app.classifier.preprocessor, full_resolution=full_resolution)
        assert preprocessor.is_large(preprocessor.open(data)) == full_resolution


def test_images_of_a_request_share_one_cpu_budget(monkeypatch):
    opened, budgets = ImagePreprocessor.open, []

    def recorded(self, source, budget=None):
        image = opened(self, source, budget)
        budgets.append(image.fp.budget)
        return image

    monkeypatch.setattr(ImagePreprocessor, "open", recorded)
    app.inference({"images": [NEWT.read_bytes()] * 3})
    assert len(budgets) >= 3 and len(set(budgets)) == 1
    monkeypatch.setattr(decoding, "MAX_CPU_S", -1)
    with pytest.raises(InvalidInput, match=r"images\[0\]: .*takes over.*send fewer"):
        app.inference({"images": [NEWT.read_bytes()]})


@pytest.mark.parametrize("wrong", [None, 7, "text", [], {}, {"image": None}, {"image": ["x"]}, {"images": "x"}])
def test_rejects_other_inputs(wrong):
    with pytest.raises(InvalidInput):
        app.inference(wrong)


def test_serving_imports_no_conversion():
    model, everything = needed("app.py"), needed("server.py")
    for script in everything:
        assert not packages(script) & {"torch", "onnx", "pytorch_model", "convert_to_onnx"}, script
    for script in model:
        assert not packages(script) & {"sanic", "server", "serving"}, script
    for script in everything - model:
        assert not packages(script) & {"onnxruntime", "PIL"}, script


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("runtime", set()),
        ("serving", {"runtime"}),
        ("client", {"runtime"}),
        ("conversion", {"runtime", "model", "pytorch_model"}),
    ],
)
def test_packages_import_only_what_they_may(package, others):
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    files = [str(path.relative_to(ROOT)) for path in (ROOT / package).glob("*.py")]
    assert len(files) > 1
    for file in files:
        assert packages(file) & ours <= others | {package}, file
