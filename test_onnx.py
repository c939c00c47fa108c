"""Test the ONNX file itself, on the CPU: are its answers right, and is its pre-processing the specified one?

    python test_onnx.py                         # or: pytest test_onnx.py
    MODEL_PATH=other.onnx python test_onnx.py

Every check is reported by name, a failed one with what was expected and what came; exit code 1 if any failed.
"""

import os
import sys
import unittest
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from model import InvalidModel, OnnxClassifier
from presets import Preset, presets

# -- settings, from the environment --------------------------------------------------------------------------------
MODEL_PATH = os.environ.get("MODEL_PATH") or "classifier.onnx"  # the file to test
# ------------------------------------------------------------------------------------------------------------------

TOLERANCE = 5e-3  # of a probability, between a resize in the graph and one by Pillow

Check = Callable[[OnnxClassifier], str]


def check_picture(preset: Preset, classifier: OnnxClassifier) -> str:
    """The picture's own pixels, resized and normalized by the graph, come out as the right class."""
    best = classifier.top(predict_raw(classifier, preset), 1)[0]
    return f"{preset.check(best.class_id, best.class_name)}, probability {best.probability:.3f}"


def check_probabilities(classifier: OnnxClassifier) -> str:
    """The answers are probabilities, not logits."""
    for preset in presets():
        row = predict_raw(classifier, preset)
        low, total = float(row.min()), float(row.sum())
        if low < 0 or abs(total - 1) > 1e-3:
            raise AssertionError(
                f"{preset.name}: expected numbers from 0 that sum to 1, got {low:.3g}, sum {total:.3g}"
            )
    return "each row is from 0 to 1 and sums to 1"


def check_resize(classifier: OnnxClassifier) -> str:
    """The graph's resize is Pillow's antialiased one, on pictures that come out wrong with any other."""
    worst = 0.0
    for preset in presets():
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


def checks() -> dict[str, Check]:
    """Return every check by its name in the report."""
    pictures = {preset.name: partial(check_picture, preset) for preset in presets()}
    return pictures | {"probabilities": check_probabilities, "resize": check_resize}


class TestOnnx(unittest.TestCase):
    """The same checks for pytest."""

    def test_every_check(self) -> None:
        classifier = OnnxClassifier(MODEL_PATH)
        for name, check in checks().items():
            with self.subTest(name):
                try:
                    check(classifier)
                except AssertionError as error:
                    self.fail(f"{name}: {error}")  # pytest's report leaves the name of a subtest out


def main() -> None:
    """Report every check; exit 1 if any failed or there is no file to test."""
    try:
        classifier = OnnxClassifier(MODEL_PATH)
    except InvalidModel as error:
        sys.exit(f"test_onnx.py: {error}")
    failed = 0
    for name, check in checks().items():
        try:
            print(f"ok    {name}: {check(classifier)}")
        except AssertionError as error:
            failed += 1
            print(f"FAIL  {name}: {error}")
    print(f"{MODEL_PATH}, {classifier.model_name}: {len(checks()) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
