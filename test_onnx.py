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


# Each check raises an error if it fails, and otherwise returns a message. The command and pytest run the same checks.
def check_image(image: LabeledImage, classifier: OnnxClassifier) -> str:
    """Check that the image, resized and normalized by the graph, is classified correctly; return the result."""
    return image.check(classifier.top(predict_raw(classifier, image), 1)[0])


def check_probabilities(images: list[LabeledImage], classifier: OnnxClassifier) -> str:
    """Check that the output is probabilities, not logits, and that they sum to 1 if the file declares softmax."""
    rows = np.stack([predict_raw(classifier, image) for image in images])
    if not 0 <= rows.min() <= rows.max() <= 1.001:
        raise AssertionError(f"expected numbers from 0 to 1, got {rows.min():.3g} to {rows.max():.3g}")
    sums = rows.sum(axis=1)
    actual = f"sums per image from {sums.min():.3f} to {sums.max():.3f}"
    if classifier.activation == "softmax" and np.abs(sums - 1).max() > 1e-3:  # rounding
        raise AssertionError(f"expected a sum of 1 after softmax, got {actual}")
    return f"all from 0 to 1, {actual}"


def check_preprocessing(classifier: OnnxClassifier) -> str:
    """Check that the graph resizes and normalizes like Pillow and NumPy, on images that reveal any difference."""
    preprocess, reference = open_graph(Path(MODEL_PATH)), classifier.preprocessor
    worst = 0.0
    for image in presets():  # for any model: the classes do not matter
        large = reference.decode(image.path).repeat(2, axis=0).repeat(2, axis=1)
        # Black out every other pixel: a checkerboard, which only antialiasing averages out.
        large[::2, ::2] = large[1::2, 1::2] = 0
        for raw in (large, reference.resize(large)):  # the graph does not resize the second
            normalized = reference.normalize(reference.resize(raw)[None])
            # The std turns differences into levels of 255. Raises an error if they exceed rounding.
            worst = max(worst, compare_pixels([image.name], preprocess(raw[None]), normalized, reference.std))
    return f"pixels differ from Pillow's by at most {worst:.2f} of 255"


def predict_raw(classifier: OnnxClassifier, image: LabeledImage) -> np.ndarray:
    """Return the probabilities, float32 [classes], of an image at its own size."""
    return classifier.predict(classifier.preprocessor.decode(image.path)[None])[0]


def get_checks(images: list[LabeledImage]) -> list[Check]:
    """Return every check, with these images."""
    checks: list[Check] = [(image.name, partial(check_image, image)) for image in images]
    return [*checks, ("probabilities", partial(check_probabilities, images)), ("preprocessing", check_preprocessing)]


def test_onnx(subtests: Any) -> None:
    """Run the checks under pytest, each as a subtest. pytest passes `subtests`."""
    for test in run_checks(get_checks(presets()), OnnxClassifier(MODEL_PATH))["tests"]:
        with subtests.test(test["name"]):
            assert test["passed"], escape(f"{test['message']}; {MODEL_PATH}")


def main() -> None:
    """Report every check; exit with code 1 if one failed or there is no file to test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expect", type=parse_expectation, action="append", metavar="IMAGE=CLASS_ID", help=EXPECT_HELP)
    images = parser.parse_args().expect or presets()
    try:
        classifier = OnnxClassifier(MODEL_PATH)
    except InvalidModel as error:
        message = re.sub(r"/\S+:\d+ .*?\) ", "", str(error))  # drop C++ locations from ONNX Runtime's messages
        sys.exit(f"test_onnx.py: {escape(message.strip())}")
    report = run_checks(get_checks(images), classifier)
    print_report(report, f"{MODEL_PATH.removeprefix(f'{ROOT}/')}, {classifier.model_name}")
    sys.exit(1 if report["failed"] else 0)


if __name__ == "__main__":
    main()
