"""Hold an ONNX file to the network that it was made of: the same pixels as Pillow's, the same answers as PyTorch's."""

from pathlib import Path

import numpy as np
import torch

from conversion import ConversionError
from conversion.graph_pixels import compare_pixels, open_preprocessing
from conversion.trained_model import TrainedModel
from model import ImagePreprocessor, OnnxClassifier
from runtime.settings import ROOT

TOLERANCE = 1e-4  # of a probability, between ONNX Runtime's and PyTorch's from the same pixels
RELATIVE_TOLERANCE = 1e-3  # of the largest probability: less than the above where there are thousands of classes
ROUNDING = 1e-6  # the least that is allowed


def generated_pictures() -> dict[str, np.ndarray]:
    """Return uint8 [height, width, 3] pictures of awkward sizes: noise on a slope, so that every pixel matters."""
    random = np.random.default_rng(0)
    pictures = {}
    for height, width in [(1, 1), (7, 3), (224, 224), (375, 501), (1200, 37), (37, 1200), (2000, 3001)]:
        slope = np.linspace(0, 191, height * width * 3).reshape(height, width, 3)
        pictures[f"generated {width}x{height}"] = (slope + random.integers(0, 64, slope.shape)).astype(np.uint8)
    return pictures


def verify(path: Path, trained: TrainedModel) -> str:
    """Compare the file's pixels with Pillow's, and its probabilities on them with PyTorch's; say how close they are.

    Raises ConversionError where a class differs, or anything else by more than the tolerances above.
    """
    preprocessor = ImagePreprocessor(trained.size, trained.mean, trained.std)
    named = {file.name: preprocessor.decode(file) for file in (ROOT / "images").glob("*.jpeg")} | generated_pictures()
    classifier = OnnxClassifier(path)
    if classifier.preprocessor != preprocessor:
        raise ConversionError(f"the file describes {classifier.preprocessor}, the model wants {preprocessor}")
    graph_pixels, network = open_preprocessing(path), trained.network_with_activation

    @torch.inference_mode()
    def probabilities(normalized: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(normalized)).numpy()

    levels = same_pixels = resized = 0.0
    batch = np.stack([preprocessor.resize(picture) for picture in named.values()])
    try:
        rows = classifier.runner.run_alone(batch)  # because `predict` takes them one by one
    except Exception as error:  # ONNX Runtime's own, which have no base class
        raise ConversionError(f"ONNX Runtime fails on {len(batch)} pictures in a batch: {error}") from error
    shape, classes = list(rows.shape), len(trained.class_names)
    if shape != [len(batch), classes]:
        raise ConversionError(f"ONNX Runtime gives {shape} for {len(batch)} pictures of {classes} classes in a batch")
    for (name, picture), pixels, row in zip(named.items(), batch[:, None], rows[:, None], strict=True):
        normalized, graphs = preprocessor.normalize(pixels), graph_pixels(picture[None])
        # Unlike the probabilities, this shows a wrong resize whatever the weights are.
        levels = max(levels, compare_pixels(name, graphs, normalized, trained.std))
        expected, raw = probabilities(normalized), classifier.predict(picture[None])
        same_pixels = max(same_pixels, compare(name, classifier.predict(pixels), expected))
        same_pixels = max(same_pixels, compare(f"{name}, in a batch", row, expected))
        same_pixels = max(same_pixels, compare(f"{name}, resized by the graph", raw, probabilities(graphs)))
        resized = max(resized, float(np.abs(raw - expected).max()))
    return (
        f"on {len(named)} pictures the same class as PyTorch and pixels within {levels:.2f} of 255, "
        f"probabilities within {same_pixels:.1e} on the same pixels, "
        f"and {resized:.1e} where the graph resizes and Pillow does"
    )


def compare(name: str, actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of two rows of probabilities, [1, classes].

    Raises ConversionError where it is over the tolerances above, or another class comes first.
    """
    if not np.isfinite(expected).all():
        raise ConversionError(f"{name}: PyTorch's probabilities are not all finite numbers")
    difference = float(np.abs(actual - expected).max())
    allowed = float(np.clip(RELATIVE_TOLERANCE * expected.max(), ROUNDING, TOLERANCE))
    first = actual.argmax()
    # Where PyTorch itself rates two classes alike to within the tolerance, either may come first.
    if not (difference <= allowed and expected.max() - expected[0, first] <= allowed):
        raise ConversionError(
            f"{name}: ONNX Runtime says class {first}, PyTorch says {expected.argmax()}; "
            f"probabilities are up to {difference:.2g} apart, {allowed:.0e} is allowed"
        )
    return difference
