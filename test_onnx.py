"""Test the ONNX file itself, on the CPU: are its answers right, and is its pre-processing the specified one?

    python test_onnx.py                         # or: pytest test_onnx.py
    MODEL_PATH=other.onnx python test_onnx.py --expect picture.jpg=7

A model with other classes than ImageNet's has its own pictures, which --expect names. Every check is reported by name,
a failed one with what was expected and what came; exit code 1 if any failed, 2 for wrong usage.
"""

import argparse
import os
import sys
import unittest
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from client.expected import EXPECT_HELP, Preset, expected, presets
from model import OnnxClassifier
from runtime.errors import InvalidImage, InvalidModel
from runtime.settings import ROOT

# -- settings, from the environment --------------------------------------------------------------------------------
MODEL_PATH = os.environ.get("MODEL_PATH") or os.path.relpath(ROOT / "classifier.onnx")  # the file to test
# ------------------------------------------------------------------------------------------------------------------

# Of a probability, between a resize in the graph and one by Pillow. On photographs a right file is up to 0.007 away,
# and one without antialias 0.06 to 0.94.
TOLERANCE = 0.02

SUM_TOLERANCE = 1e-3  # of the sum of a picture's probabilities, each of which is rounded

Check = Callable[[OnnxClassifier], str]


def check_picture(preset: Preset, classifier: OnnxClassifier) -> str:
    """The picture's own pixels, resized and normalized by the graph, come out as the right class."""
    best = classifier.top(predict_raw(classifier, preset), 1)[0]
    classes = len(classifier.class_names)
    if preset.class_id >= classes:
        raise AssertionError(f"expected {preset.class_id}, but the model's {classes} classes are 0 to {classes - 1}")
    return f"{preset.check(best.class_id, best.class_name)}, probability {best.probability:.3f}"


def check_probabilities(known: list[Preset], classifier: OnnxClassifier) -> str:
    """The answers are probabilities, not logits, and after a softmax, which the file says it has, they sum to 1."""
    rows = np.stack([predict_raw(classifier, preset) for preset in known])
    low, high = float(rows.min()), float(rows.max())
    if not (low >= 0 and high <= 1.001):
        raise AssertionError(f"expected numbers from 0 to 1, got {low:.3g} to {high:.3g}")
    sums = rows.sum(axis=1)
    came = f"the sum of a picture's from {sums.min():.3f} to {sums.max():.3f}"
    if classifier.activation == "softmax" and np.abs(sums - 1).max() > SUM_TOLERANCE:
        raise AssertionError(f"expected a sum of 1 after softmax, got {came}")
    return f"each is from 0 to 1, and {came}"


def check_resize(classifier: OnnxClassifier) -> str:
    """The graph's resize is Pillow's antialiased one, on pictures that come out wrong with any other."""
    worst = 0.0
    for preset in presets():  # for any model: the classes do not matter
        pixels = fine_pattern(classifier.preprocessor.decode(preset.path))
        graph = classifier.predict(pixels[None])[0]
        pillow = classifier.predict(classifier.preprocessor.resize(pixels)[None])[0]
        worst = max(worst, float(np.abs(graph - pillow).max()))
        if worst > TOLERANCE:
            raise AssertionError(f"{preset.name}: expected to be within {TOLERANCE} of Pillow's, got {worst:.3f}")
    return f"probabilities within {worst:.1e} of those with Pillow's"


def predict_raw(classifier: OnnxClassifier, preset: Preset) -> np.ndarray:
    """Return the probabilities, float32 [classes], of a picture at its own size."""
    return classifier.predict(classifier.preprocessor.decode(preset.path)[None])[0]


def fine_pattern(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 [height, width, 3] doubled in size under a checkerboard that a right resize averages away."""
    height, width, _ = pixels.shape
    large = np.asarray(Image.fromarray(pixels).resize((2 * width, 2 * height)), np.int16)
    rows, columns = np.ogrid[: 2 * height, : 2 * width]
    board = np.where((rows + columns) % 2, 60, -60)[..., None]
    return (large.clip(60, 195) + board).astype(np.uint8)


def checks(known: list[Preset]) -> list[tuple[str, Check]]:
    """Return every check, with its name in the report, for these pictures."""
    pictures = [(preset.name, partial(check_picture, preset)) for preset in known]
    return [*pictures, ("probabilities", partial(check_probabilities, known)), ("resize", check_resize)]


class TestOnnx(unittest.TestCase):
    """The same checks for pytest."""

    def test_every_check(self) -> None:
        classifier = OnnxClassifier(MODEL_PATH)
        for name, check in checks(presets()):
            with self.subTest(name):
                try:
                    check(classifier)
                except AssertionError as error:
                    self.fail(f"{name}: {error}")  # pytest's report leaves the name of a subtest out


def main() -> None:
    """Report every check; exit 1 if any failed or there is no file to test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expect", type=expected, action="extend", metavar="PICTURE=CLASS_ID", help=EXPECT_HELP)
    known = parser.parse_args().expect or presets()
    try:
        classifier = OnnxClassifier(MODEL_PATH)
    except InvalidModel as error:
        sys.exit(f"test_onnx.py: {error}")
    passed = failed = 0
    for name, check in checks(known):
        try:
            print(f"ok    {name}: {check(classifier)}")
            passed += 1
        except (AssertionError, InvalidImage) as error:
            print(f"FAIL  {name}: {error}")
            failed += 1
    print(f"{MODEL_PATH}, {classifier.model_name}: {passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
