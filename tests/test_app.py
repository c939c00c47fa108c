"""app.py: what Banana's contract takes and gives, without HTTP."""

import base64
import itertools
import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import app
from model import ImagePreprocessor
from runtime import inputs
from runtime.base64_text import decode_base64
from runtime.errors import InvalidInput, Unavailable
from runtime.inputs import LargeImageSlot
from tests.imports import needed, packages
from tests.malicious_images import encoded, huge
from tests.server_process import DEADLINE_S, NEWT, ROOT, TENCH


@pytest.fixture(scope="module", autouse=True)
def initialized():
    app.init()


def test_bytes_and_base64_text_are_the_same_picture():
    example = json.loads((ROOT / "banana_config.json").read_text())["example_input"]
    by_bytes = app.inference({**example, "image": base64.b64decode(example["image"])})
    by_text = app.inference(example)
    assert by_bytes["predictions"] == by_text["predictions"]


def in_lines(text: str) -> str:
    """Return the text in lines of 76 characters, as MIME has base64."""
    return "".join(f"{text[at : at + 76]}\r\n" for at in range(0, len(text), 76))


@pytest.mark.parametrize("write", [in_lines, "data:image/jpeg;base64,{}".format, "\t {} \n".format])
@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padding", ["=", ""])
def test_base64_is_taken_however_it_is_written(write, alphabet, padding):
    for image in (bytes(range(256)), b"\xfb\xff\xfe?", b"hi", b"12345"):
        text = write(alphabet(image).decode().replace("=", padding))
        assert decode_base64(text) == image


@pytest.mark.parametrize(
    "text", ["@", "a", "aGk=!", "!aGk=", "aGk=aGk=", "aG=k", "aGk==", "aG=", "=", "+/-_", "aG\0k", "aG\u00e9k", "aG,k"]
)
def test_what_is_no_base64_is_refused(text):
    for written in (text, f"data:image/png;base64,{text}"):
        with pytest.raises(InvalidInput, match="base64"):
            app.inference({"image": written})


def test_pixels_are_the_picture_that_they_are_of():
    pixels = np.asarray(Image.open(NEWT).convert("RGB"))
    by_pixels, by_file = (app.inference({"image": image}) for image in (pixels, NEWT.read_bytes()))
    assert by_pixels["predictions"] == by_file["predictions"]


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), "u1")],
)
def test_pixels_of_another_kind_are_refused(pixels):
    with pytest.raises(InvalidInput, match="uint8"):
        app.inference({"image": pixels})


def test_the_example_of_banana_config_is_true():
    config = json.loads((ROOT / "banana_config.json").read_text())
    expected = config["example_output"]
    answer = app.inference(config["example_input"])
    assert answer.keys() == expected.keys()
    assert (answer["class_id"], answer["class_name"]) == (expected["class_id"], expected["class_name"])
    assert answer["timing_ms"].keys() == expected["timing_ms"].keys()
    if app.status()["model"] == "efficientnet-lite0":  # the model that gave the example's numbers
        assert answer["probability"] == pytest.approx(expected["probability"], abs=0.05)


def test_class_0_is_a_class_like_any_other():
    answer = app.inference({"image": TENCH.read_bytes()})
    assert (answer["class_id"], answer["predictions"][0]["class_id"]) == (0, 0)


def test_top_k_over_the_number_of_classes_names_them_all():
    predictions = app.inference({"image": TENCH.read_bytes(), "top_k": 5000})["predictions"]
    assert sorted(prediction["class_id"] for prediction in predictions) == list(range(1000))


def test_a_list_of_one_comes_back_as_a_list():
    answer = app.inference({"images": [NEWT.read_bytes()]})
    assert [result["class_id"] for result in answer["results"]] == [26]


def test_waiting_large_images_leave_two_workers():
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


def test_a_request_takes_the_large_image_slot_once(monkeypatch):
    monkeypatch.setattr(app, "large_images", LargeImageSlot(1))
    large = huge("PNG", 3_000, 3_000)
    results = app.inference({"images": [large, large]})["results"]
    assert [result["image"]["width"] for result in results] == [3_000, 3_000]
    with pytest.raises(InvalidInput, match="incomplete"):
        app.inference({"image": large[:-100]})
    app.inference({"image": large})  # the request that failed has released the slot


def large_file(size):
    return huge("PNG", 5, 5).ljust(size, b"\0")


@pytest.mark.parametrize(
    ("data", "large"),
    [
        (encoded(Image.new("RGB", (2_700, 2_700)), "PNG"), False),
        (encoded(Image.new("RGB", (2_900, 2_900)), "PNG"), True),
        (encoded(Image.new("L", (5_500, 5_000)), "PNG"), True),
        (encoded(Image.new("RGB", (1_500, 1_500)), "WEBP"), True),
        (encoded(Image.new("RGB", (1_300, 1_300)), "WEBP"), False),
        (encoded(Image.new("RGB", (6_000, 4_000)), "JPEG"), False),
        (encoded(Image.new("RGB", (10_000, 1_700)), "JPEG"), True),  # too short a side for a reduced scale
        (encoded(Image.new("RGB", (4_000, 3_000)), "JPEG", progressive=True), True),
        (large_file(31_000_000), False),
        (large_file(33_000_000), True),
        (np.zeros((2_900, 2_900, 3), np.uint8), True),
    ],
    ids=[
        "PNG",
        "large PNG",
        "gray",
        "large WebP",
        "WebP",
        "JPEG",
        "short side",
        "progressive",
        "bytes",
        "many",
        "pixels",
    ],
)
def test_an_image_that_takes_much_memory_waits_its_turn(monkeypatch, data, large):
    monkeypatch.setattr(app, "large_images", LargeImageSlot(1))
    with app.large_images.hold():
        if large:
            with pytest.raises(Unavailable, match="large images"):
                app.inference({"image": data})
        else:
            app.inference({"image": data})
    app.inference({"image": data})


def test_full_resolution_makes_a_large_jpeg_wait_its_turn():
    data = encoded(Image.new("RGB", (6_000, 4_000)), "JPEG")
    for full_resolution in (False, True):
        preprocessor = replace(app.classifier.preprocessor, full_resolution=full_resolution)
        assert preprocessor.is_large(preprocessor.open(data)) == full_resolution


def test_the_images_of_a_request_share_one_deadline(monkeypatch):
    opened, deadlines = ImagePreprocessor.open, []

    def recorded(self, source, deadline=None):
        deadlines.extend([] if deadline is None else [deadline])
        return opened(self, source, deadline)

    monkeypatch.setattr(ImagePreprocessor, "open", recorded)
    app.inference({"images": [NEWT.read_bytes()] * 3})
    assert len(deadlines) == 3 and len(set(deadlines)) == 1
    monkeypatch.setattr(inputs, "MAX_CPU_S", -1)
    with pytest.raises(InvalidInput, match=r"images\[0\]: .*too long.*send fewer"):
        app.inference({"images": [NEWT.read_bytes()]})


@pytest.mark.parametrize("wrong", [None, 7, "text", [], {}, {"image": None}, {"image": ["x"]}, {"images": "x"}])
def test_anything_else_is_refused(wrong):
    with pytest.raises(InvalidInput):
        app.inference(wrong)


def test_what_serves_imports_nothing_that_converts_and_each_part_keeps_to_its_own():
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
def test_a_package_imports_no_script_and_no_other_package_than_it_may(package, others):
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    files = [str(path.relative_to(ROOT)) for path in (ROOT / package).glob("*.py")]
    assert len(files) > 1
    for file in files:
        assert packages(file) & ours <= others | {package}, file
