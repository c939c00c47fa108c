"""Test the ONNX file on the CPU: does it classify correctly, and does it preprocess as its metadata describes?

    python test_onnx.py                         # or: pytest test_onnx.py
    MODEL_PATH=other.onnx python test_onnx.py --expect image.jpg=7

For a model whose classes are not ImageNet's, give your own images with --expect. Every check is reported by name, with
what was expected if it failed. Exit codes: 0 success; 1 a check failed; 2 wrong usage.
"""

import runtime.startup_errors  # reports an old Python, a missing package or Ctrl-C in one line

import argparse
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from client.labeled_images import EXPECT_HELP, LabeledImage, parse_expectation, presets
from client.report import Check, escape, print_report, run_checks
from conversion.preprocessing import compare_pixels, open_graph
from model import OnnxClassifier
from runtime.errors import InvalidModel
from runtime.settings import ROOT, ModelSettings, read

MODEL_PATH = read(ModelSettings).MODEL_PATH

FAILURES = (Exception,)  # of a check: the errors of ONNX Runtime have no common class


def check_image(image: LabeledImage, classifier: OnnxClassifier) -> str:
    """The image, resized and normalized by the graph, gets its class."""
    best = classifier.top(predict_raw(classifier, image), 1)[0]
    classes = len(classifier.class_names)
    if image.class_id >= classes:
        raise AssertionError(f"expected {image.class_id}, but the model's {classes} classes are 0 to {classes - 1}")
    return image.check(best, classifier.model_name)


def check_probabilities(images: list[LabeledImage], classifier: OnnxClassifier) -> str:
    """The output is probabilities, not logits; if the file declares softmax, those of each image sum to 1."""
    rows = np.stack([predict_raw(classifier, image) for image in images])
    if not 0 <= rows.min() <= rows.max() <= 1.001:
        raise AssertionError(f"expected numbers from 0 to 1, got {rows.min():.3g} to {rows.max():.3g}")
    sums = rows.sum(axis=1)
    actual = f"sums per image from {sums.min():.3f} to {sums.max():.3f}"
    if classifier.activation == "softmax" and np.abs(sums - 1).max() > 1e-3:  # for rounding
        raise AssertionError(f"expected a sum of 1 after softmax, got {actual}")
    return f"all from 0 to 1, {actual}"


def add_checkerboard(pixels: np.ndarray) -> np.ndarray:
    """Double an image, uint8 [height, width, 3], and add a checkerboard that only antialiasing averages out."""
    contrast = 60
    large = pixels.repeat(2, axis=0).repeat(2, axis=1).clip(contrast, 255 - contrast)  # no overflow below
    is_odd = np.indices(large.shape[:2]).sum(axis=0)[..., None] % 2
    return np.where(is_odd, large + contrast, large - contrast)


def check_preprocessing(classifier: OnnxClassifier) -> str:
    """The graph resizes and normalizes like Pillow and NumPy, on images that reveal any difference."""
    graph, reference = open_graph(Path(MODEL_PATH)), classifier.preprocessor
    worst = 0.0
    for image in presets():  # for any model: the classes do not matter
        large = add_checkerboard(reference.decode(image.path))
        for raw in (large, reference.resize(large)):  # the graph does not resize the second
            normalized = reference.normalize(reference.resize(raw)[None])
            worst = max(worst, compare_pixels([image.name], graph(raw[None]), normalized, reference.std))
    return f"pixels differ from Pillow's by at most {worst:.2f} of 255"


def predict_raw(classifier: OnnxClassifier, image: LabeledImage) -> np.ndarray:
    """Return the probabilities, float32 [classes], of an image at its own size."""
    return classifier.predict(classifier.preprocessor.decode(image.path)[None])[0]


def get_checks(images: list[LabeledImage]) -> list[Check]:
    """Return every check of a classifier, with these images."""
    named = [(image.name, partial(check_image, image)) for image in images]
    return [*named, ("probabilities", partial(check_probabilities, images)), ("preprocessing", check_preprocessing)]


def pytest_generate_tests(metafunc: Any) -> None:
    """Make each check a test, for pytest."""
    checks = get_checks(presets())
    metafunc.parametrize("check", checks, ids=[name for name, _ in checks])


def test_onnx(check: Check) -> None:
    """The check passes."""
    [test] = run_checks([check], OnnxClassifier(MODEL_PATH), failures=FAILURES)["tests"]
    assert test["passed"], escape(f"{test['name']}: {test['message']}; {MODEL_PATH}")


def main() -> None:
    """Report every check; exit with code 1 if one failed or there is no file to test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expect", type=parse_expectation, action="append", metavar="IMAGE=CLASS_ID", help=EXPECT_HELP)
    images = parser.parse_args().expect or presets()
    try:
        classifier = OnnxClassifier(MODEL_PATH)
    except InvalidModel as error:
        reason = re.sub(r"\[ONNXRuntimeError\].* failed:|/\S+\.cc:\d+ .*?\) ", "", str(error))  # without C++
        sys.exit(f"test_onnx.py: {escape(reason.strip())}")
    report = run_checks(get_checks(images), classifier, failures=FAILURES)
    print_report(report, f"{MODEL_PATH.removeprefix(f'{ROOT}/')}, {classifier.model_name}")
    sys.exit(1 if report["failed"] else 0)


if __name__ == "__main__":
    main()
