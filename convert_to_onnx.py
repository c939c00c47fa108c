"""Convert a trained PyTorch classifier to one ONNX file: a picture's pixels in, probabilities out.

    python convert_to_onnx.py                                        # the assignment's ResNet-18
    python convert_to_onnx.py --model efficientnet-lite0             # the model whose weights come with a package
    python convert_to_onnx.py --weights FILE --output other.onnx     # other weights of the same network
    python convert_to_onnx.py --model MODULE:CALLABLE --weights FILE # any other classifier, see README.md

Resize, normalization, softmax or sigmoid and the class names travel in the file. It appears under its name only when
ONNX Runtime's answers from it have been compared with PyTorch's and agree.
"""

import argparse
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import torch
from onnx import compose, helper, parser

import pytorch_model
from conversion import custom_model
from conversion.custom_model import InvalidNetwork
from conversion.verification import Agreement, Disagreement, prove
from conversion.weights import WeightsError
from pytorch_model import ACTIVATIONS, KNOWN_MODELS, TrainedModel
from runtime.errors import InvalidModel

OPSET = 20  # 18 is the first with an antialiased Resize; ONNX Runtime 1.31 runs 20 without a warning
MAX_BYTES = 2**31  # of an ONNX file, which is one Protocol Buffers message

# The resize works on the uint8 pixels: in float, or with another setting here, it drifts from Pillow's by up to 105
# of 255. On channels-last pixels, because transposing a large picture first costs more than resizing it. Pixels of the
# model's size go past it: OpenVINO takes half a millisecond, a fifth of its time, to resize them to what they are.
PREPROCESSING = """
<ir_version: 10, opset_import: ["": {opset}]>
preprocessing (uint8[batch, height, width, 3] image) => (float[batch, {channels}, {height}, {width}] pixels)
<
    int64[2] size = {{{height}, {width}}}, float white = {{255}},
    float[{channels}] mean = {{{mean}}}, float[{channels}] std = {{{std}}}{grey_constants}
>
{{
    given = Shape <start = 1, end = 3> (image)
    same_sides = Equal (given, size)
    alike = Cast <to = 7> (same_sides)
    both = ReduceMin <keepdims = 0> (alike)
    is_resized = Cast <to = 9> (both)
    resized = If (is_resized) <
        then_branch = keep () => (uint8[batch, {height}, {width}, 3] kept) {{ kept = Identity (image) }},
        else_branch = resize () => (uint8[batch, {height}, {width}, 3] squashed) {{
            sides = Constant <value = int64[2] {{{height}, {width}}}> ()
            squashed = Resize <
                mode = "linear", antialias = 1, exclude_outside = 1,
                coordinate_transformation_mode = "half_pixel", axes = [1, 2]
            > (image, , , sides)
        }}
    >{grey}
    levels = Cast <to = 1> ({resized})
    unit = Div (levels, white)
    centred = Sub (unit, mean)
    normalized = Div (centred, std)
    pixels = Transpose <perm = [0, 3, 1, 2]> (normalized)
}}
"""

# Pillow's luma (ITU-R 601-2), to the bit: the sum in whole numbers, which no execution provider computes in less
# precision. Not so the division, for which OpenVINO rounds where ONNX says to cut.
GREY_CONSTANTS = """,
    int32[3] luma = {19595, 38470, 7471}, int32 half = {32768}, float one = {65536}, int64[1] channel = {3}"""
GREY = """
    colours = Cast <to = 6> (resized)
    weighted = Mul (colours, luma)
    sum = ReduceSum (weighted, channel)
    raised = Add (sum, half)
    to_cut = Cast <to = 1> (raised)
    exact = Div (to_cut, one)
    grey = Floor (exact)"""


class ConversionError(Exception):
    """The network cannot become an ONNX file; the message says why."""


def build_graph(trained: TrainedModel) -> onnx.ModelProto:
    """Return the whole model: uint8 [batch, height, width, 3] RGB to probabilities, float32 [batch, classes]."""
    network = export_network(trained)
    preprocessing = parser.parse_model(preprocessing_text(trained))
    preprocessing.ir_version = network.ir_version
    preprocessing = compose.add_prefix(preprocessing, "preprocessing/", rename_inputs=False)
    graph = compose.merge_models(preprocessing, network, io_map=[("preprocessing/pixels", "network_input")])
    del graph.opset_import[1:]  # both parts brought the same
    strip_trace(graph)
    graph.producer_name, graph.producer_version = "convert_to_onnx.py", f"PyTorch {torch.__version__}"
    description = {
        "size": trained.size,
        "mean": trained.mean,
        "std": trained.std,
        "channels": "RGB" if trained.channels == 3 else "L",
    }
    metadata = {
        "model": trained.name,
        "weights_digest": trained.digest,
        "preprocessing": json.dumps(description),
        "activation": trained.activation,
        "class_names": json.dumps(trained.class_names),
    }
    helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph, full_check=True)
    classes = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if classes not in (0, len(trained.class_names)):  # 0: not known before it runs, and so for the proof to say
        raise ConversionError(f"the network has {classes} classes, its class names are {len(trained.class_names)}")
    return graph


def preprocessing_text(trained: TrainedModel) -> str:
    """Return the steps before the network in ONNX's own textual syntax."""
    grey = trained.channels == 1
    height, width = trained.size
    return PREPROCESSING.format(
        opset=OPSET,
        channels=trained.channels,
        height=height,
        width=width,
        mean=", ".join(map(repr, trained.mean)),
        std=", ".join(map(repr, trained.std)),
        grey_constants=GREY_CONSTANTS if grey else "",
        grey=GREY if grey else "",
        resized="grey" if grey else "resized",
    )


def export_network(trained: TrainedModel) -> onnx.ModelProto:
    """Return the network and its activation as ONNX: float32 [batch, channels, *size] to float32 [batch, classes]."""
    weights = sum(tensor.nbytes for tensor in trained.network.state_dict().values())
    if weights >= MAX_BYTES:
        raise ConversionError(f"the network's weights are {weights / 1e9:.1f} GB; an ONNX file holds less than 2")
    try:
        with quiet():
            return torch.onnx.export(
                trained.classifier,
                (torch.zeros(2, trained.channels, *trained.size),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["network_input"],
                output_names=["probabilities"],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            ).model_proto
    except torch.onnx.OnnxExporterError as error:
        raise ConversionError(
            f"PyTorch cannot export the network: {custom_model.explain(error)}\n"
            "Its steps have to be ones that ONNX has, and the same for every picture and any number of them"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the exporter logs, prints and warns of: pages about itself. The error and the proof say enough."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def strip_trace(graph: onnx.ModelProto) -> None:
    """Remove what the exporter notes of its own run: stack traces with this machine's paths, a third of the file."""
    graph.ClearField("metadata_props")
    graph.graph.ClearField("metadata_props")
    values = [*graph.graph.input, *graph.graph.output, *graph.graph.value_info, *graph.graph.initializer]
    for part in [*graph.graph.node, *values]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def convert(trained: TrainedModel, output: Path) -> Agreement:
    """Write the model to `output`. Raises ConversionError or Disagreement, and then leaves `output` as it was."""
    graph = build_graph(trained)
    part = output.with_name(f"{output.name}.part")
    try:
        onnx.save(graph, part)
        agreement = prove(part, trained)
        part.replace(output)
    except InvalidModel as error:
        raise ConversionError(f"ONNX Runtime cannot run what became of the network: {error}") from error
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


def arguments() -> argparse.Namespace:
    """Return the command line, checked; exit 2 where it is wrong. What is about custom models is in `custom`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(KNOWN_MODELS)
    parser.add_argument(
        "--model",
        default="resnet18",
        help=f"{known}; auto: resnet18 if its weights can be had, else efficientnet-lite0; or MODULE:CALLABLE, "
        "what builds a network when called without arguments. Default: %(default)s",
    )
    parser.add_argument(
        "--weights", type=Path, help="state dict, checkpoint or .safetensors; default: a known model's own"
    )
    parser.add_argument("--output", type=Path, default=Path("classifier.onnx"), help="default: %(default)s")
    custom = parser.add_argument_group("for MODULE:CALLABLE")
    custom.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of its input; default: 224 224")
    custom.add_argument("--mean", type=float, nargs="+", help="per channel, in units of 0 to 1; default: ImageNet's")
    custom.add_argument("--std", type=float, nargs="+", help="likewise")
    custom.add_argument("--labels", type=Path, metavar="FILE", help="a class name a line; default: class 0, class 1, …")
    custom.add_argument("--activation", choices=ACTIVATIONS, help="what its outputs still need; default: softmax")
    custom.add_argument("--channels", type=int, choices=(1, 3), help="3: RGB, the default; 1: grey")
    given = parser.parse_args()
    options = ("size", "mean", "std", "labels", "activation", "channels")
    given.custom = {name: getattr(given, name) for name in options if getattr(given, name) is not None}
    module, colon, attribute = given.model.partition(":")
    if colon and not (module and attribute and given.weights):
        parser.error("a custom model is --model MODULE:CALLABLE --weights FILE")
    if not colon and given.model not in (*KNOWN_MODELS, "auto"):
        parser.error(f"--model {given.model!r} is none of {known}, auto, and not MODULE:CALLABLE")
    if not colon and given.custom:
        parser.error(f"{given.model} has its own --{', --'.join(given.custom)}: these are for MODULE:CALLABLE")
    return given


def main() -> None:
    """Convert as the command line says; exit 1 with a sentence, and without a file, where that is not possible."""
    given = arguments()
    try:
        if ":" in given.model:
            trained = custom_model.load(given.model, given.weights, **given.custom)
        else:
            trained = pytorch_model.load(choose_model() if given.model == "auto" else given.model, given.weights)
        print(f"{trained.name}: weights from {trained.weights}, {trained.digest}")
        agreement = convert(trained, given.output)
    except (ConversionError, Disagreement, InvalidNetwork, WeightsError, OSError) as error:
        sys.exit(f"convert_to_onnx.py: {error}")
    print(f"{trained.name}: {agreement}\n{trained.name}: {given.output}, {given.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
