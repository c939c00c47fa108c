"""What PRECISION=auto costs in accuracy: each picture's answer in the fastest precision beside the exact one.

    python -m benchmarks.precision FOLDER_OF_PICTURES

Where the hardware has bfloat16 or TF32, auto computes in that, and it decodes a large JPEG at a reduced scale.
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
    """Compare the two on every picture, and print one line for each measure."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.precision FOLDER_OF_PICTURES")
    exact, fast = (OnnxClassifier(MODEL_PATH, "auto", precision) for precision in ("f32", "auto"))
    same, moved, gaps = 0, [], []
    for path in sorted(Path(sys.argv[1]).iterdir()):
        try:
            wanted, got = (c.predict(c.preprocessor(path)[None])[0] for c in (exact, fast))
        except InvalidInput as error:
            print(f"{path}: {error}", file=sys.stderr)
            continue
        moved.append(float(np.abs(wanted - got).max()))
        if wanted.argmax() == got.argmax():
            same += 1
        else:
            gaps.append(float(wanted.max() - wanted[got.argmax()]))
    if not moved:
        sys.exit(f"{sys.argv[1]}: no pictures")
    print(f"{fast.model_name} on {fast.runner.provider}, {fast.runner.precision} beside {exact.runner.precision}")
    print(f"the same class first: {same} of {len(moved)}")
    print(f"a probability moves by: {np.median(moved):.4f} in the median, {max(moved):.4f} at most")
    if gaps:
        print(f"where another class comes first, the two were {max(gaps):.4f} apart at most")


if __name__ == "__main__":
    main()
