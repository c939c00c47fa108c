"""Load any PyTorch image classifier for convert_to_onnx.py: a network that somebody's module builds, and its weights.

Whatever the conversion would get wrong in silence is refused here, with what to do about it.
"""

import importlib
import math
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

import torch
from torch import nn

from conversion import ConversionError
from conversion.download import sha256_digest
from conversion.trained_model import TrainedModel
from conversion.weights import load_weights
from pytorch_model import IMAGENET_MEAN, IMAGENET_STD
from runtime.settings import ROOT


def load(
    model: str,
    weights: Path,
    weights_key: str | None = None,
    size: Sequence[int] = (224, 224),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    labels: Path | None = None,
    activation: str | None = None,
    channels: int = 3,
) -> TrainedModel:
    """Build the network of `model`, MODULE:CALLABLE, and load the file `weights` into it, as load_weights does.

    `size` is (height, width); `mean` and `std` are per channel, in units of 0 to 1. `labels` is a file with a class
    name a line. `activation`, by default softmax, makes probabilities of the outputs. Raises ConversionError.
    """
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise ConversionError(f"{option} has to be {channels} finite numbers, one a channel, not {tuple(values)}")
    if min(std) <= 0:
        raise ConversionError(f"--std has to be more than 0, not {tuple(std)}")
    if min(size) < 1:
        raise ConversionError(f"--size has to be a height and a width of at least 1, not {tuple(size)}")
    network = build(model).cpu().float().eval()  # wherever, and in whatever precision, it was built
    load_weights(network, weights, weights_key)
    outputs = probe_outputs(network, (channels, *size))
    check_activation(activation, outputs)
    names = read_labels(labels) if labels else [f"class {number}" for number in range(outputs.shape[1])]
    if len(names) != outputs.shape[1]:
        raise ConversionError(f"{labels} has {len(names)} class names, the network has {outputs.shape[1]} classes")
    name, digest = model.replace(":", "."), sha256_digest(weights)
    size, mean, std = (size[0], size[1]), tuple(mean), tuple(std)
    return TrainedModel(name, network, weights, digest, size, mean, std, names, activation or "softmax")


def build(model: str) -> nn.Module:
    """Import MODULE, also from the current directory, and return what its CALLABLE gives. Raises ConversionError."""
    module, _, attribute = model.partition(":")
    top = module.partition(".")[0]
    theirs, ours = (PathFinder.find_spec(top, [str(folder)]) for folder in (Path.cwd(), ROOT))
    if theirs and ours and theirs.origin != ours.origin:
        raise ConversionError(f"{module}: {top} is the name of a module of this repository too: rename yours")
    sys.path.insert(0, str(Path.cwd()))
    try:
        network = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # it is somebody else's code, which may raise anything
        hint = "it has to be imported from here, and called without arguments"
        raise ConversionError(f"{model} failed: {format_error(error)}; {hint}") from error
    if not isinstance(network, nn.Module):
        raise ConversionError(f"{model} gave {type(network).__name__}; expected a torch.nn.Module")
    return network


def probe_outputs(network: nn.Module, shape: Sequence[int]) -> torch.Tensor:
    """Return the network's outputs, [batch, classes], for normalized noise of `shape`. Raises ConversionError.

    It has to give finite numbers, and to every picture the same whatever else is in its batch.
    """
    noise = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            outputs = network(noise)
            alone = [network(noise[i : i + 1]) for i in range(4)]
    except Exception as error:  # as above
        raise ConversionError(
            f"the network fails on pictures of {list(shape)} (channels, height, width): {format_error(error)}\n"
            "--size and --channels say what it takes"
        ) from error
    if not isinstance(outputs, torch.Tensor):
        raise ConversionError(
            f"the network gives {type(outputs).__name__}; expected one tensor, [batch, classes]: "
            "name a function that wraps it in a module which returns that alone"
        )
    if outputs.ndim != 2 or len(outputs) != 4 or not outputs.is_floating_point():
        given = f"{outputs.dtype} {list(outputs.shape)}"
        raise ConversionError(f"the network gives {given} for 4 pictures; expected float [4, classes]")
    if not outputs.isfinite().all():
        raise ConversionError("the network's outputs are not all finite numbers")
    if not (torch.cat(alone) - outputs).abs().max() <= 1e-3 * outputs.abs().max():  # rounding is far less
        raise ConversionError(
            "the network's answer to a picture is not always the same: "
            "it is random, also in evaluation mode, or depends on the others in the batch"
        )
    return outputs


def check_activation(activation: str | None, outputs: torch.Tensor) -> None:
    """Raise ConversionError where probabilities would not come out, or logits seem to be probabilities already."""
    are_probabilities = ((outputs >= 0) & (outputs <= 1.001)).all()
    spread = f"the network's outputs, from {outputs.min():.3g} to {outputs.max():.3g},"
    if activation is None and are_probabilities:
        raise ConversionError(f"{spread} may be probabilities already: say --activation none, or which they still need")
    if activation == "none" and not are_probabilities:
        raise ConversionError(f"{spread} are no probabilities: say --activation softmax or sigmoid")
    if activation in (None, "softmax") and outputs.shape[1] == 1:
        raise ConversionError("softmax over one class is always 1: say --activation sigmoid, or none")


def read_labels(path: Path) -> list[str]:
    """Return the class names of a text file, one a line in the order of the classes. Raises ConversionError."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} cannot be read: {error}") from error
    if not all(names):
        raise ConversionError(f"{path}: line {names.index('') + 1} is empty; expected a class name a line")
    return names


def format_error(error: BaseException) -> str:
    """Return in a line what went wrong in somebody's code, and the last place that is not PyTorch's or Python's."""
    while error.__cause__:
        error = error.__cause__
    libraries = (sysconfig.get_path("stdlib"), str(Path(torch.__file__).parent), __file__, "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(libraries)]
    reason = f"{type(error).__name__}: {textwrap.shorten(str(error), 300, placeholder=' …')}"
    return f"{reason} ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})" if frames else reason
