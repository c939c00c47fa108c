"""Compare an ONNX file with its network: the same pixels as Pillow's, the same probabilities as PyTorch's."""

from pathlib import Path

import numpy as np
import torch

from conversion import ConversionError
from conversion.preprocessing import compare_pixels, open_graph
from conversion.trained_model import TrainedModel
from model import OnnxClassifier
from runtime.settings import ROOT

TOLERANCE = 1e-4  # of a probability, between ONNX Runtime's and PyTorch's from the same pixels
RELATIVE_TOLERANCE = 1e-3  # of the largest probability: stricter than TOLERANCE if there are thousands of classes
ROUNDING = 1e-6  # a difference this small is always allowed


def generated_images(size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return uint8 [height, width, 3] images of `size` and of awkward sizes: noise on a gradient.

    None is near black or white, where bicubic overshoots: clipping there depends on which side is resized first.
    """
    random = np.random.default_rng(0)
    images = {}
    for height, width in [(1, 1), (7, 3), size, (375, 501), (1200, 120), (37, 1200), (2000, 3001)]:
        slope = np.linspace(32, 160, height * width * 3).reshape(height, width, 3)
        images[f"generated {width}x{height}"] = (slope + random.integers(0, 64, slope.shape)).astype(np.uint8)
    return images


def verify(path: Path, trained: TrainedModel) -> str:
    """Compare the file at `path` with Pillow and PyTorch; return how close they are, as a clause.

    Raises ConversionError if pixels or probabilities differ by more than the tolerances, or what the network raises.
    """
    classifier, preprocess, predict_batch = OnnxClassifier(path), open_graph(path), open_graph(path, "probabilities")
    preprocessor = classifier.preprocessor  # as the file describes it
    images = {file.name: preprocessor.decode(file) for file in (ROOT / "images").glob("*.jpeg")}
    images |= generated_images(preprocessor.size)
    resized = np.stack([preprocessor.resize(image) for image in images.values()])

    # Unlike probabilities, pixels show a wrong resize whatever the weights are.
    normalized = preprocessor.normalize(resized)
    graph_pixels = np.concatenate([preprocess(image[None]) for image in images.values()])
    levels = compare_pixels(list(images), graph_pixels, normalized, preprocessor.std)

    with torch.no_grad():  # contiguous copies, as from a data loader: code such as x.view needs them
        inputs = (torch.from_numpy(image[None].copy()) for image in (*normalized, *graph_pixels))
        results = np.concatenate([trained.network(image).numpy() for image in inputs])
    expected, expected_from_raw = np.split(results, 2)
    from_raw = np.concatenate([classifier.predict(image[None]) for image in images.values()])
    worst = max(
        compare_probabilities("one by one", classifier.predict(resized), expected),
        compare_probabilities("in a batch", predict_batch(resized), expected),
        compare_probabilities("resized by the graph", from_raw, expected_from_raw),
    )
    return f"on {len(images)} images within {levels:.2f} of 255 of Pillow's pixels, {worst:.1e} of PyTorch's results"


def compare_probabilities(how: str, actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of ONNX Runtime's probabilities from PyTorch's, both [images, classes].

    Raises ConversionError if it is over the tolerances above. `how` the images were given begins the message.
    """
    if actual.shape != expected.shape:
        raise ConversionError(f"{how}: ONNX Runtime gives {list(actual.shape)}, PyTorch {list(expected.shape)}")
    if not np.isfinite(expected).all():
        raise ConversionError("PyTorch's probabilities are not all finite numbers, perhaps for an image of one color")
    differences = np.abs(actual - expected)
    allowed = np.clip(RELATIVE_TOLERANCE * expected.max(axis=1, keepdims=True), ROUNDING, TOLERANCE)
    if not (differences <= allowed).all():  # also if one is not a number
        raise ConversionError(f"{how}: ONNX Runtime's probabilities are up to {differences.max():.2g} from PyTorch's")
    return float(differences.max())
