"""What PRECISION=auto costs in accuracy: each image's result compared with the exact one.

    python -m benchmarks.precision FOLDER_OF_IMAGES

If the hardware has bfloat16 or TF32, auto computes in it; large JPEGs are decoded at a reduced scale.
"""

import runtime.startup_errors  # reports an old Python, a missing package or Ctrl-C in one line

import os
import sys
from pathlib import Path

import numpy as np

from model import OnnxClassifier
from runtime.errors import InvalidInput
from runtime.settings import ROOT

MODEL_PATH = os.environ.get("MODEL_PATH") or str(ROOT / "classifier.onnx")


def main() -> None:
    """Compare the two on every image, and print the differences."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.precision FOLDER_OF_IMAGES")
    exact, fast = (OnnxClassifier(MODEL_PATH, "auto", precision) for precision in ("f32", "auto"))
    same, moved, gaps = 0, [], []
    for path in sorted(Path(sys.argv[1]).iterdir()):
        try:
            expected, actual = (c.predict(c.preprocessor(path)[None])[0] for c in (exact, fast))
        except InvalidInput as error:
            print(f"{path}: {error}", file=sys.stderr)
            continue
        moved.append(float(np.abs(expected - actual).max()))
        if expected.argmax() == actual.argmax():
            same += 1
        else:
            gaps.append(float(expected.max() - expected[actual.argmax()]))
    if not moved:
        sys.exit(f"{sys.argv[1]}: no images")
    print(
        f"{fast.model_name} on {fast.runner.provider}: {fast.runner.precision} compared with {exact.runner.precision}"
    )
    print(f"same top class: {same} of {len(moved)}")
    print(f"change of a probability: median {np.median(moved):.4f}, max {max(moved):.4f}")
    if gaps:
        print(f"if the top class differs, the two were at most {max(gaps):.4f} apart")


if __name__ == "__main__":
    main()
