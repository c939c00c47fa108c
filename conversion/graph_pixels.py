"""The preprocessing of an ONNX file on its own, to compare its pixels with Pillow's. Imports no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import utils

from conversion import ConversionError
from runtime.backends import import_onnxruntime

onnxruntime = import_onnxruntime()  # before a file is written: Ctrl-C during an import exits without removing it
PIXELS = "preprocessing/pixels"  # the tensor between preprocessing and network: float32 [batch, channels, *size]
# Of 255, between the graph's pixels and Pillow's. Both resize in two passes and round after each: halves are rounded
# differently in about one value in fifty, and twice in a few of a million. Any wrong resize is off in many more.
MAX_LEVELS, ONE_LEVEL, MAX_SHARE = 2.01, 1.01, 0.001


def open_preprocessing(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return the file's preprocessing: uint8 [batch, height, width, 3] to float32 [batch, channels, *size].

    Raises ValueError if the file has no PIXELS.
    """
    part = utils.Extractor(onnx.load(path)).extract_model(["image"], [PIXELS])
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"image": pixels})[0]


def compare_pixels(names: Sequence[str], graph: np.ndarray, reference: np.ndarray, std: Sequence[float]) -> float:
    """Return the largest difference of two arrays of normalized pixels, in levels of 255.

    Both are float32 [images, channels, *size]. Raises ConversionError, with the image's name, if it is over MAX_LEVELS
    or if more than MAX_SHARE of the values differ by more than ONE_LEVEL.
    """
    levels = np.abs((graph - reference) * np.reshape(std, (-1, 1, 1))) * 255
    for name, image in zip(names, levels, strict=True):
        share = (image > ONE_LEVEL).mean()
        if not (image.max() <= MAX_LEVELS and share <= MAX_SHARE):
            most = f"up to {image.max():.1f} of 255 from Pillow's (2 is allowed)"
            many = f"{share:.2%} of them by more than 1 ({MAX_SHARE:.1%} is allowed)"
            raise ConversionError(f"{name}: the graph's pixels are {most}, {many}")
    return float(levels.max())
