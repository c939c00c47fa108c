"""Convert a trained PyTorch classifier to one ONNX file: a picture's pixels in, probabilities out.

    python convert_to_onnx.py                                        # the assignment's ResNet-18
    python convert_to_onnx.py --model efficientnet-lite0             # the model whose weights come with a package
    python convert_to_onnx.py --weights FILE --output other.onnx     # other weights of the same network

Resize, normalization, softmax and the class names travel in the file. It appears under its name only when
ONNX Runtime's answers from it have been compared with PyTorch's and agree.
"""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import compose, helper, parser, utils
from torch import nn

import pytorch_model
from model import ImagePreprocessor, InvalidModel, OnnxClassifier
from pytorch_model import KNOWN_MODELS, KnownModel, TrainedModel
from weights import WeightsError

OPSET = 20  # 18 is the first with an antialiased Resize; ONNX Runtime 1.31 runs 20 without a warning
SAME_PIXELS_TOLERANCE = 1e-4  # of a probability, where both get the same pixels
LEVELS_TOLERANCE = 1.01  # of 255, between the graph's pixels and Pillow's: one is rounding
RESIZED_TOLERANCE = 5e-3  # of a probability, where the graph has resized and Pillow has: 1 of 255 apart in places

# The resize works on the uint8 pixels: in float, or with another setting here, it drifts from Pillow's by up to 105
# of 255. On channels-last pixels, because transposing a large picture first costs more than resizing it.
PREPROCESSING = """
<ir_version: 10, opset_import: ["": {opset}]>
preprocessing (uint8[batch, height, width, 3] image) => (float[batch, 3, {size[0]}, {size[1]}] pixels)
<
    int64[2] size = {{{size[0]}, {size[1]}}}, float white = {{255}},
    float[3] mean = {{{mean[0]!r}, {mean[1]!r}, {mean[2]!r}}}, float[3] std = {{{std[0]!r}, {std[1]!r}, {std[2]!r}}}
>
{{
    resized = Resize <
        mode = "linear", antialias = 1, exclude_outside = 1,
        coordinate_transformation_mode = "half_pixel", axes = [1, 2]
    > (image, , , size)
    levels = Cast <to = 1> (resized)
    unit = Div (levels, white)
    centred = Sub (unit, mean)
    normalized = Div (centred, std)
    pixels = Transpose <perm = [0, 3, 1, 2]> (normalized)
}}
"""


class ConversionError(Exception):
    """The model cannot be converted, or the file does not agree with PyTorch; the message says how."""


@dataclass(frozen=True)
class Agreement:
    """How far ONNX Runtime was from PyTorch and Pillow at most: in levels of 255, and in probabilities."""

    pictures: int
    levels: float
    same_pixels: float
    resized: float

    def __str__(self) -> str:
        return (
            f"on {self.pictures} pictures the same class as PyTorch and pixels within {self.levels:.2f} of 255, "
            f"probabilities within {self.same_pixels:.1e}, and {self.resized:.1e} with the graph's own resize"
        )


def build_graph(trained: TrainedModel, known: KnownModel, name: str) -> onnx.ModelProto:
    """Return the whole model: uint8 [batch, height, width, 3] RGB to probabilities, float32 [batch, classes]."""
    preprocessing = parser.parse_model(
        PREPROCESSING.format(opset=OPSET, size=known.size, mean=known.mean, std=known.std)
    )
    network = export_network(trained.network, known.size)
    preprocessing.ir_version = network.ir_version
    preprocessing = compose.add_prefix(preprocessing, "preprocessing/", rename_inputs=False)
    graph = compose.merge_models(preprocessing, network, io_map=[("preprocessing/pixels", "network_input")])
    del graph.opset_import[1:]  # both parts brought the same
    strip_trace(graph)
    graph.producer_name, graph.producer_version = "convert_to_onnx.py", f"PyTorch {torch.__version__}"
    class_names = known.class_names()
    metadata = {
        "model": name,
        "weights_digest": trained.digest,
        "preprocessing": json.dumps({"size": known.size, "mean": known.mean, "std": known.std, "channels": "RGB"}),
        "class_names": json.dumps(class_names),
    }
    helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph, full_check=True)
    classes = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if classes != len(class_names):
        raise ConversionError(f"the network has {classes} classes, its class names are {len(class_names)}")
    return graph


def export_network(network: nn.Module, size: tuple[int, int]) -> onnx.ModelProto:
    """Return the network and a softmax as ONNX: float32 [batch, 3, *size] to float32 [batch, classes]."""
    # Absent torchvision operators, which nothing here uses, and a deprecation inside torch.export itself.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        return torch.onnx.export(
            nn.Sequential(network, nn.Softmax(1)).eval(),
            (torch.zeros(2, 3, *size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["network_input"],
            output_names=["probabilities"],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        ).model_proto


def strip_trace(graph: onnx.ModelProto) -> None:
    """Remove what the exporter notes of its own run: stack traces with this machine's paths, a third of the file."""
    graph.ClearField("metadata_props")
    graph.graph.ClearField("metadata_props")
    values = [*graph.graph.input, *graph.graph.output, *graph.graph.value_info, *graph.graph.initializer]
    for part in [*graph.graph.node, *values]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def generated_pictures() -> list[np.ndarray]:
    """Return uint8 [height, width, 3] pictures of awkward sizes: noise on a slope, so that every pixel matters."""
    random = np.random.default_rng(0)
    pictures = []
    for height, width in [(1, 1), (7, 3), (224, 224), (375, 501), (1200, 37), (37, 1200), (2000, 3001)]:
        slope = np.linspace(0, 191, height * width * 3).reshape(height, width, 3)
        pictures.append((slope + random.integers(0, 64, slope.shape)).astype(np.uint8))
    return pictures


def prove(path: Path, network: nn.Module, preprocessor: ImagePreprocessor) -> Agreement:
    """Compare the file's pixels with those of `preprocessor`, and its probabilities on them with those of `network`.

    Raises ConversionError where a class differs, or anything else by more than the tolerances above.
    """
    files = sorted((pytorch_model.ROOT / "images").glob("*.jpeg"))
    named = {file.name: preprocessor.decode(file) for file in files}
    named |= {f"generated {p.shape[1]}x{p.shape[0]}": p for p in generated_pictures()}
    classifier = OnnxClassifier(path)
    described, wanted = ((p.size, p.mean, p.std) for p in (classifier.preprocessor, preprocessor))
    if described != wanted:
        raise ConversionError(f"the file describes size, mean and std as {described}, the model wants {wanted}")
    graph_pixels = pixels_of(path)
    levels = same_pixels = resized = 0.0
    for name, picture in named.items():
        pixels = preprocessor.resize(picture)[None]
        normalized = preprocessor.normalize(pixels)
        levels = max(levels, compare_levels(name, graph_pixels(picture[None]), normalized, preprocessor))
        with torch.inference_mode():
            expected = network(torch.from_numpy(normalized)).softmax(1).numpy()
        same_pixels = max(same_pixels, compare(name, classifier.predict(pixels), expected, SAME_PIXELS_TOLERANCE))
        resized = max(resized, compare(name, classifier.predict(picture[None]), expected, RESIZED_TOLERANCE))
    return Agreement(len(named), levels, same_pixels, resized)


def pixels_of(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return the graph's pre-processing alone: uint8 [batch, height, width, 3] to float32 [batch, 3, *size]."""
    part = utils.Extractor(onnx.load(path)).extract_model(["image"], ["preprocessing/pixels"])
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda picture: session.run(None, {"image": picture})[0]


def compare_levels(name: str, actual: np.ndarray, expected: np.ndarray, preprocessor: ImagePreprocessor) -> float:
    """Return the largest difference of normalized pixels, [1, 3, height, width], in levels of 255.

    Unlike the probabilities, it shows a wrong resize whatever the weights are. Raises ConversionError over tolerance.
    """
    std = np.array(preprocessor.std, np.float32).reshape(3, 1, 1)
    levels = float((np.abs(actual - expected) * std).max() * 255)
    if not levels <= LEVELS_TOLERANCE:
        raise ConversionError(f"{name}: the graph's pixels are up to {levels:.1f} of 255 from Pillow's, 1 is allowed")
    return levels


def compare(name: str, actual: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """Return the largest difference of two rows of probabilities, [1, classes].

    Raises ConversionError where it is over `tolerance`, or another class comes first.
    """
    difference = float(np.abs(actual - expected).max())
    first, wanted = int(actual.argmax()), int(expected.argmax())
    # Where PyTorch itself rates two classes alike to within the tolerance, either may come first.
    tie = expected[0, wanted] - expected[0, first] <= tolerance
    if not difference <= tolerance or (first != wanted and not tie):
        raise ConversionError(
            f"{name}: ONNX Runtime says class {first}, PyTorch says {wanted}; "
            f"probabilities are up to {difference:.2g} apart, {tolerance:.0e} is allowed"
        )
    return difference


def convert(name: str, weights: Path | None, output: Path) -> Agreement:
    """Write the known model `name` to `output`, with the weights of a file if one is named.

    Raises ConversionError or WeightsError, and then leaves `output` as it was.
    """
    known = KNOWN_MODELS[name]
    trained = pytorch_model.load(name, weights)
    print(f"{name}: weights from {trained.weights}, {trained.digest}")
    graph = build_graph(trained, known, name)
    part = output.with_name(f"{output.name}.part")
    try:
        onnx.save(graph, part)
        preprocessor = ImagePreprocessor(known.size, known.mean, known.std)
        agreement = prove(part, trained.network, preprocessor)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return agreement


def choose_model() -> str:
    """Return resnet18 if its weights are there or can be had, else efficientnet-lite0, and say so loudly."""
    try:
        pytorch_model.known_weights(KNOWN_MODELS["resnet18"])
        return "resnet18"
    except WeightsError as error:
        bar = "!" * 100
        print(
            f"{bar}\n{error}\n\nUSING efficientnet-lite0 INSTEAD OF resnet18, whose weights cannot be had.\n{bar}",
            file=sys.stderr,
        )
        return "efficientnet-lite0"


def main() -> None:
    """Convert as the command line says; exit 1 with a sentence, and without a file, where that is not possible."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--model",
        default="resnet18",
        choices=[*KNOWN_MODELS, "auto"],
        help="default: resnet18; auto: resnet18 if its weights can be had, else efficientnet-lite0",
    )
    arguments.add_argument("--weights", type=Path, help="a state dict to use instead of the model's own weights")
    arguments.add_argument("--output", type=Path, default=Path("classifier.onnx"), help="default: classifier.onnx")
    given = arguments.parse_args()
    try:
        name = choose_model() if given.model == "auto" else given.model
        agreement = convert(name, given.weights, given.output)
    except (ConversionError, InvalidModel, WeightsError, OSError) as error:
        sys.exit(f"convert_to_onnx.py: {error}")
    print(f"{name}: {agreement}\n{name}: {given.output}, {given.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
