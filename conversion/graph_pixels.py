"""The preprocessing of an ONNX file on its own, to compare its pixels with Pillow's. Imports no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import utils

from conversion import ConversionError
from runtime.backends import import_onnxruntime

PIXELS = "preprocessing/pixels"  # the tensor between preprocessing and network: float32 [batch, channels, *size]
LEVELS_TOLERANCE = 1.01  # of 255, between the graph's pixels and Pillow's: one is rounding


def open_preprocessing(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return the file's preprocessing: uint8 [batch, height, width, 3] to float32 [batch, channels, *size]."""
    part = utils.Extractor(onnx.load(path)).extract_model(["image"], [PIXELS])
    session = import_onnxruntime().InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"image": pixels})[0]


def compare_pixels(names: Sequence[str], graph: np.ndarray, reference: np.ndarray, std: Sequence[float]) -> float:
    """Return the largest difference of two arrays of normalized pixels, in levels of 255.

    Both are float32 [images, channels, *size]. Raises ConversionError, with the image's name, if it is over the
    tolerance.
    """
    differences = np.abs((graph - reference) * np.reshape(std, (-1, 1, 1))).max(axis=(1, 2, 3)) * 255
    for name, difference in zip(names, differences, strict=True):
        if not difference <= LEVELS_TOLERANCE:
            raise ConversionError(
                f"{name}: the graph's pixels are up to {difference:.1f} of 255 from Pillow's, 1 is allowed"
            )
    return float(differences.max())
