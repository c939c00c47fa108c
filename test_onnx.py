"""Test the ONNX file itself, on the CPU: are its answers right, and is its pre-processing the specified one?

    python test_onnx.py                         # or: pytest test_onnx.py
    MODEL_PATH=other.onnx python test_onnx.py --expect picture.jpg=7

A model with other classes than ImageNet's has its own pictures, which --expect names. Every check is reported by name,
a failed one with what was expected and what came; exit code 1 if any failed, 2 for wrong usage.
"""

import runtime.start  # noqa: F401  first, for what goes wrong in other imports

import argparse
import sys
from functools import partial
from typing import Any

import numpy as np

from client.labeled_images import EXPECT_HELP, LabeledImage, parse_expectation, presets
from client.report import Check, escape, print_report, run_checks
from model import OnnxClassifier
from runtime.errors import InvalidInput, InvalidModel
from runtime.settings import ROOT, ModelSettings, read

MODEL_PATH = read(ModelSettings).MODEL_PATH

# Of a probability, between a resize in the graph and one by Pillow. On photographs a right file is up to 0.007 away,
# and one without antialias 0.05 to 0.99.
TOLERANCE = 0.02


def check_image(preset: LabeledImage, classifier: OnnxClassifier) -> str:
    """The image's own pixels, resized and normalized by the graph, come out as the right class."""
    best = classifier.top(predict_raw(classifier, preset), 1)[0]
    classes = len(classifier.class_names)
    if preset.class_id >= classes:
        raise AssertionError(f"expected {preset.class_id}, but the model's {classes} classes are 0 to {classes - 1}")
    return preset.check(best)


def check_probabilities(known: list[LabeledImage], classifier: OnnxClassifier) -> str:
    """The answers are probabilities, not logits, and after a softmax, which the file says it has, they sum to 1."""
    rows = np.stack([predict_raw(classifier, preset) for preset in known])
    if not 0 <= rows.min() <= rows.max() <= 1.001:
        raise AssertionError(f"expected numbers from 0 to 1, got {rows.min():.3g} to {rows.max():.3g}")
    sums = rows.sum(axis=1)
    actual = f"the sum of a picture's from {sums.min():.3f} to {sums.max():.3f}"
    if classifier.activation == "softmax" and np.abs(sums - 1).max() > 1e-3:  # each of them is rounded
        raise AssertionError(f"expected a sum of 1 after softmax, got {actual}")
    return f"each is from 0 to 1, and {actual}"


def check_resize(classifier: OnnxClassifier) -> str:
    """The graph's resize is Pillow's antialiased one, on images that come out wrong with any other."""
    worst = 0.0
    for preset in presets():  # for any model: the classes do not matter
        # Twice as large, under a checkerboard that a right resize averages away.
        large = classifier.preprocessor.decode(preset.path).repeat(2, axis=0).repeat(2, axis=1).clip(60, 195)
        odd = np.indices(large.shape[:2]).sum(axis=0)[..., None] % 2
        pixels = np.where(odd, large + 60, large - 60)
        resized = classifier.preprocessor.resize(pixels)
        worst = max(worst, np.abs(classifier.predict(pixels[None]) - classifier.predict(resized[None])).max())
        if worst > TOLERANCE:
            raise AssertionError(f"{preset.name}: expected to be within {TOLERANCE} of Pillow's, got {worst:.3f}")
    return f"probabilities within {worst:.1e} of those with Pillow's"


def predict_raw(classifier: OnnxClassifier, preset: LabeledImage) -> np.ndarray:
    """Return the probabilities, float32 [classes], of an image at its own size."""
    return classifier.predict(classifier.preprocessor.decode(preset.path)[None])[0]


def get_checks(known: list[LabeledImage]) -> list[Check]:
    """Return every check, for these images."""
    images = [(preset.name, partial(check_image, preset)) for preset in known]
    return [*images, ("probabilities", partial(check_probabilities, known)), ("resize", check_resize)]


def pytest_generate_tests(metafunc: Any) -> None:
    """Make each check a test of its own for pytest."""
    checks = get_checks(presets())
    metafunc.parametrize("check", checks, ids=[name for name, _ in checks])


def test_onnx(check: Check) -> None:
    """The check passes."""
    [test] = run_checks([check], OnnxClassifier(MODEL_PATH), InvalidInput)["tests"]
    assert test["passed"], escape(f"{test['name']}: {test['message']}; {MODEL_PATH}")


def main() -> None:
    """Report every check; exit 1 if any failed or there is no file to test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--expect", type=parse_expectation, action="append", metavar="PICTURE=CLASS_ID", help=EXPECT_HELP
    )
    known = parser.parse_args().expect or presets()
    try:
        classifier = OnnxClassifier(MODEL_PATH)
    except InvalidModel as error:
        sys.exit(f"test_onnx.py: {error}")
    report = run_checks(get_checks(known), classifier, InvalidInput)
    print_report(report, f"{MODEL_PATH.removeprefix(f'{ROOT}/')}, {classifier.model_name}")
    sys.exit(1 if report["failed"] else 0)


if __name__ == "__main__":
    main()
