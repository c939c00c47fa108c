"""Convert a trained PyTorch classifier to one ONNX file: an image's pixels in, probabilities out.

    python convert_to_onnx.py                                        # the assignment's ResNet-18
    python convert_to_onnx.py --model efficientnet-lite0             # the model whose weights come with a package
    python convert_to_onnx.py --weights FILE --output other.onnx     # other weights of the same network
    python convert_to_onnx.py --model MODULE:CALLABLE --weights FILE # any other: docs/custom-models.md

The file includes the resize, the normalization, softmax or sigmoid, and the class names. It is written only if, in
ONNX Runtime, its pixels agree with Pillow's and its probabilities with PyTorch's.
"""

import runtime.startup_errors  # reports an old Python, a missing package or Ctrl-C in one line

import argparse
import io
import json
import logging
import sys
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryFile

import msgspec
import onnx
import torch

from conversion import ConversionError, custom_model, trained_model
from conversion.files import replacing
from conversion.preprocessing import OPSET, PIXELS, preprocessing_graph
from conversion.trained_model import ACTIVATIONS, TrainedModel
from conversion.verification import verify
from pytorch_model import KNOWN_MODELS
from runtime.settings import ROOT


def build_graph(trained: TrainedModel) -> onnx.ModelProto:
    """Return the whole model: uint8 [batch, height, width, 3] RGB to probabilities, float32 [batch, classes]."""
    network = export_network(trained)
    preprocessing = preprocessing_graph(trained.preprocessor)  # its output, named PIXELS, is the normalized pixels
    model = onnx.compose.merge_models(preprocessing, network, io_map=[(PIXELS, network.graph.input[0].name)])
    del model.opset_import[1:]  # the merge lists ONNX's operator set once per part; both use OPSET
    # The exporter records the origin of each step: stack traces with this machine's paths.
    for item in [*model.graph.node, *model.graph.output, *model.graph.value_info]:
        item.ClearField("metadata_props")
    model.producer_name, model.producer_version = "convert_to_onnx.py", f"PyTorch {torch.__version__}"
    metadata = {
        "model": trained.name,
        "weights_digest": trained.digest,
        "preprocessing": msgspec.json.encode(trained.preprocessing_metadata).decode(),
        "activation": trained.activation,
        "class_names": json.dumps(trained.class_names),  # ASCII, for any reader
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def export_network(trained: TrainedModel) -> onnx.ModelProto:
    """Return the network and its activation as ONNX: float32 [batch, channels, *size] to float32 [batch, classes]."""
    weight_bytes = sum(tensor.nbytes for tensor in trained.network.state_dict().values())
    if weight_bytes >= 2**31:  # the file is one Protocol Buffers message
        raise ConversionError(f"the weights are {weight_bytes / 2**30:.1f} GiB; an ONNX file holds less than 2")
    # A batch of 2, because the exporter treats 1 as a constant.
    batch = torch.zeros(2, len(trained.preprocessor.mean), *trained.preprocessor.size)
    # The exporter logs, prints and warns at length; its error is enough.
    logging.getLogger("torch").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
        return torch.onnx.export(
            trained.network,  # in evaluation mode; it ends with the activation
            (batch,),
            dynamo=True,
            opset_version=OPSET,
            output_names=["probabilities"],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        ).model_proto


def convert(trained: TrainedModel, output: Path) -> str:
    """Write the model to `output`, and return how close it is to PyTorch.

    Raises ConversionError, or an error from the network, PyTorch, ONNX or ONNX Runtime; `output` is then unchanged.
    """
    print(f"{trained.name}: exporting (about half a minute)", flush=True)
    graph = build_graph(trained)
    print(f"{trained.name}: comparing the file with PyTorch", flush=True)
    with replacing(output) as partial_file:
        onnx.save(graph, partial_file)
        return verify(partial_file, trained)


def parse_args() -> argparse.Namespace:
    """Return the command line, checked; exit 2 if it is wrong. `custom_options` are those for MODULE:CALLABLE."""
    known = ", ".join(KNOWN_MODELS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = f"{known}; auto: the first whose weights are available; or MODULE:CALLABLE; default: %(default)s"
    parser.add_argument("--model", default="resnet18", help=models)
    parser.add_argument("--weights", type=Path, help="state dict or checkpoint; default: a known model's own")
    parser.add_argument("--weights-key", metavar="KEY", help="one of several in a checkpoint, such as model_ema")
    parser.add_argument("--output", type=Path, default=ROOT / "classifier.onnx", help="default: %(default)s")
    group = parser.add_argument_group("for MODULE:CALLABLE", "called without arguments, it must return a network")
    group.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="input height and width; default: 224 224")
    group.add_argument("--crop-pct", type=float, metavar="RATIO", help="center crop, such as 0.875; default: squash")
    group.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="default: bilinear")
    group.add_argument("--mean", type=float, nargs="+", help="per channel, of pixels in [0, 1]; default: ImageNet's")
    group.add_argument("--std", type=float, nargs="+", help="per channel, of pixels in [0, 1]; default: ImageNet's")
    group.add_argument("--channels", type=int, choices=(1, 3), help="1: gray; default: 3, RGB")
    group.add_argument("--labels", type=Path, metavar="FILE", help="class names: lines or JSON; default: numbers")
    group.add_argument("--activation", choices=ACTIVATIONS, help="makes outputs probabilities; default: softmax")
    options = parser.parse_args()
    general = ("model", "weights", "weights_key", "output")
    given = {name: value for name, value in vars(options).items() if value is not None}
    options.custom_options = {name: value for name, value in given.items() if name not in general}
    module, colon, attribute = options.model.partition(":")
    options.is_custom = bool(colon)
    if options.is_custom and not (module and attribute and options.weights):
        parser.error("a custom model needs --model MODULE:CALLABLE --weights FILE")
    if not options.is_custom and options.model not in (*KNOWN_MODELS, "auto"):
        parser.error(f"unknown --model {options.model!r}: give one of {known}, auto, or MODULE:CALLABLE")
    if not options.is_custom and options.custom_options:
        names = ", ".join(options.custom_options)
        parser.error(f"{options.model} has its own {names}: these options are for MODULE:CALLABLE")
    if options.crop_pct is not None and not 0.1 <= options.crop_pct <= 1:
        parser.error("--crop-pct must be from 0.1 to 1, such as 0.875")
    if options.size and not all(1 <= side <= 4096 for side in options.size):
        parser.error("--size must be a height and a width from 1 to 4096")
    return options


def main() -> None:
    """Convert the model that the command line names; if that fails, exit 1 and leave the output as it was."""
    options = parse_args()
    try:
        if options.output.is_dir():
            raise ConversionError(f"{options.output} is a folder: name a file")
        TemporaryFile(dir=options.output.parent).close()  # reports a missing folder now, not after the export
        load = custom_model.load if options.is_custom else trained_model.load
        trained = load(options.model, options.weights, options.weights_key, **options.custom_options)
        print(f"{trained.name}: weights from {trained.weights}, {trained.digest}", flush=True)
        print(f"{trained.name}: {trained.preprocessing_metadata}, activation {trained.activation}", flush=True)
        agreement = convert(trained, options.output)
    except (ConversionError, OSError) as error:
        sys.exit(f"convert_to_onnx.py: {error}")
    except (Exception, SystemExit) as error:  # from PyTorch, ONNX, ONNX Runtime, or a network, which may call sys.exit
        reason = f"{options.model} cannot be converted: {custom_model.format_error(error)}"
        advice = "Check --size and --channels, and replace steps that ONNX lacks or that depend on the image's content"
        sys.exit(f"convert_to_onnx.py: {reason}" + (f"\n{advice}" if options.is_custom else ""))
    print(f"{trained.name}: {agreement}")
    print(f"{trained.name}: {options.output}, {options.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
