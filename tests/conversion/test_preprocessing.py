"""preprocessing.py: the graph's pixels are Pillow's, and any other resize is noticed."""

from contextlib import nullcontext

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from PIL import Image

from conversion import ConversionError
from conversion.preprocessing import MAX_SHARE, compare_pixels, open_graph, preprocessing_graph
from conversion.verification import generated_images
from model import ImagePreprocessor
from tests.server_process import MODEL_PATH

SIDES = [28, 32, 40, 48, 56, 60, 64, 72, 75, 80, 84, 96, 100, 112, 120, 128, 144, 150, 160, 168, 176, 180, 192]
SIDES += [196, 200, 208, 216, 220, 224, 227, 229, 232, 240, 248, 250, 256, 260, 272, 280, 288, 299, 300, 320, 331]
SIDES += [336, 350, 352, 360, 368, 380, 384, 392, 400, 416, 440, 448, 456, 480, 512, 518, 528, 560, 600, 640]
SIZES = [*((side, side) for side in SIDES), (96, 128), (240, 320), (320, 240)]
PREPROCESSING = {
    "squash": (None, "bilinear"),
    "bicubic squash": (None, "bicubic"),
    "crop of torchvision": (0.875, "bilinear"),
    "crop of timm": (0.9, "bicubic"),
    "whole shorter side": (1.0, "bicubic"),
}


def unnormalized(size, crop_pct, interpolation):
    return ImagePreprocessor(size, (0.0,) * 3, (1.0,) * 3, crop_pct, interpolation)


def compare(preprocessor, images, graph=None):
    """Compare a graph, by default the right one, with Pillow on images."""
    graph = graph or preprocessing_graph(preprocessor)
    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    actual = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images.values()])
    resized = np.stack([preprocessor.resize(image) for image in images.values()])
    return compare_pixels(list(images), actual, preprocessor.normalize(resized), preprocessor.std)


LARGE = generated_images((224, 224))
SMALL = {name: image for name, image in LARGE.items() if image.size < 600_000}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_every_common_size_is_accepted(size):
    assert compare(unnormalized(size, None, "bilinear"), SMALL) <= 2.01


@pytest.mark.parametrize("described", PREPROCESSING.values(), ids=PREPROCESSING)
@pytest.mark.parametrize(
    "size", [(32, 32), (96, 128), (224, 224), (288, 288), (640, 640)], ids=lambda size: str(size[0])
)
def test_every_kind_of_preprocessing_is_accepted(size, described):
    assert compare(unnormalized(size, *described), LARGE if size == (224, 224) else SMALL) <= 2.01


WRONG_RESIZES = {
    "no antialias": {"antialias": 0, "exclude_outside": 0},
    "beyond the edge": {"exclude_outside": 0},
    "another cubic": {"cubic_coeff_a": -0.75},
    "the other filter": {"mode": None},
    "nearest": {"mode": "nearest", "antialias": 0, "exclude_outside": 0},
    "aligned corners": {"coordinate_transformation_mode": "align_corners"},
    "asymmetric": {"coordinate_transformation_mode": "asymmetric"},
}


def mutate(graph, changes):
    """Change attributes of the graph's resize."""
    branches = next(node for node in graph.graph.node if node.op_type == "If").attribute
    (resize,) = (node for branch in branches for node in branch.g.node if node.op_type == "Resize")
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in resize.attribute} | changes
    if values["mode"] is None:
        values["mode"] = "linear" if any(attribute.s == b"cubic" for attribute in resize.attribute) else "cubic"
    del resize.attribute[:]
    resize.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in values.items())
    return graph


@pytest.mark.parametrize("size", [(64, 64), (256, 256)], ids=lambda size: str(size[0]))
@pytest.mark.parametrize("described", PREPROCESSING.values(), ids=PREPROCESSING)
@pytest.mark.parametrize("changes", WRONG_RESIZES.values(), ids=WRONG_RESIZES)
def test_a_wrong_resize_fails_by_a_wide_margin(size, described, changes):
    crop_pct, interpolation = described
    if changes == {"exclude_outside": 0} and crop_pct == 0.875:
        pytest.skip("a crop leaves out the edges, where alone this differs")
    if "cubic_coeff_a" in changes and interpolation == "bilinear":
        pytest.skip("bilinear has no coefficient")
    preprocessor = unnormalized(size, *described)
    graph, shares = mutate(preprocessing_graph(preprocessor), changes), []
    for name, image in (LARGE if changes == {"exclude_outside": 0} else SMALL).items():
        try:
            compare(preprocessor, {name: image}, graph)
        except ConversionError as error:
            shares.append(float(str(error).split("Pillow's, ")[1].split("%")[0]) / 100)
        except Fail:  # ONNX Runtime's own, of a cubic resize that it does not have
            shares.append(1)
    assert max(shares) > 3 * MAX_SHARE


def published_crop(image, size, crop_pct, resample):
    """torchvision's Resize(floor(size / crop_pct)) and CenterCrop(size), as its code has them."""
    scaled, (width, height) = int(size / crop_pct), image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = scaled, int(scaled * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize((new_width, new_height), resample)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


@pytest.mark.parametrize("sides", [(500, 375), (375, 500), (333, 1000), (50, 31), (257, 256), (224, 224), (3000, 2001)])
@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"), [(224, 0.875, "bilinear"), (224, 0.9, "bicubic"), (288, 1.0, "bicubic")]
)
def test_the_crop_is_that_of_published_transforms(sides, size, crop_pct, interpolation):
    image = Image.fromarray(np.random.default_rng(0).integers(32, 224, (*sides[::-1], 3), np.uint8))
    expected = published_crop(image, size, crop_pct, Image.Resampling[interpolation.upper()])
    actual = ImagePreprocessor((size, size), crop_pct=crop_pct, interpolation=interpolation)(image)
    difference = np.abs(actual.astype(int) - np.asarray(expected))
    if max(sides) > 1000:  # resized in strips: the width first, and Pillow decides by the sides
        assert difference.max() <= 2
        assert (difference > 1).mean() < 0.001
    else:
        assert difference.max() == 0


def test_a_crop_that_is_not_square_is_that_of_timm():
    # timm's ResizeKeepRatio((floor(96 / 0.9), floor(128 / 0.9))) rounds 500 * 142 / 375; CenterCrop takes the middle.
    preprocessor = ImagePreprocessor((96, 128), crop_pct=0.9)
    assert preprocessor.scaled_size == (106, 142)
    assert preprocessor.fit((375, 500)) == ((142, 189), (7, 46))


def test_pixels_of_the_models_size_count_as_preprocessed():
    pixels = SMALL["generated 224x224"]
    preprocessor = unnormalized((224, 224), 0.875, "bilinear")
    np.testing.assert_array_equal(preprocessor.resize(pixels), pixels)
    assert compare(preprocessor, {"as it is": pixels}) < 0.01


@pytest.mark.parametrize(("count", "agrees"), [(30, True), (31, False)])
def test_one_value_in_a_thousand_may_be_two_levels_off(count, agrees):
    reference = np.zeros((1, 3, 100, 100), np.float32)
    graph = reference.copy()
    graph.flat[:count] = 2 / 255
    with nullcontext() if agrees else pytest.raises(ConversionError, match=r"0.10% of them"):
        compare_pixels(["image"], graph, reference, (1, 1, 1))


def test_refuses_pixels_that_are_not_numbers():
    pixels = np.zeros((1, 3, 2, 2), np.float32)
    with pytest.raises(ConversionError):
        compare_pixels(["image"], pixels * np.nan, pixels, (1, 1, 1))


def test_a_file_without_the_tensor_is_not_ours(tmp_path):
    model = onnx.load(MODEL_PATH)
    for node in model.graph.node:
        node.output[:] = [name.replace("preprocessing/pixels", "other") for name in node.output]
        node.input[:] = [name.replace("preprocessing/pixels", "other") for name in node.input]
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="preprocessing/pixels"):
        open_graph(tmp_path / "other.onnx")
