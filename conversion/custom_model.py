"""Load any PyTorch image classifier for convert_to_onnx.py: a network that a user's module builds, and its weights.

Whatever the conversion would silently get wrong is refused here, with what to do.
"""

import importlib
import json
import math
import re
import sys
import sysconfig
import textwrap
import traceback
from collections import Counter
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conversion import ConversionError, enumerate_few
from conversion.files import digests
from conversion.trained_model import TrainedModel
from conversion.weights import load_weights
from model import ImagePreprocessor
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
    crop_pct: float | None = None,
    interpolation: str = "bilinear",
) -> TrainedModel:
    """Build the network of `model`, MODULE:CALLABLE, and load the file `weights` into it, as load_weights does.

    `size` is (height, width); `mean` and `std` are per channel, of pixels scaled to [0, 1]. `labels` is a file that
    read_labels accepts. `activation` makes the outputs probabilities; default: softmax. Raises ConversionError.
    """
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise ConversionError(f"{option} must be {channels} finite numbers, one per channel, not {tuple(values)}")
        if max(values) > 1:
            raise ConversionError(f"{option} {tuple(values)} is not for pixels scaled to [0, 1]: divide by 255")
    if min(std) <= 0:
        raise ConversionError(f"--std must be more than 0, not {tuple(std)}")
    if min(size) < 1:
        raise ConversionError(f"--size must be a height and a width of at least 1, not {tuple(size)}")
    if crop_pct is not None and not 0.1 <= crop_pct <= 1:
        raise ConversionError(f"--crop-pct must be from 0.1 to 1, such as 0.875, not {crop_pct}")
    network = build(model)
    load_weights(network, weights, weights_key)
    outputs = probe_outputs(network, (channels, *size))
    check_activation(activation, outputs)
    names = name_classes(labels, outputs.shape[1])
    preprocessor = ImagePreprocessor((size[0], size[1]), tuple(mean), tuple(std), crop_pct, interpolation)
    name, digest = model.replace(":", "."), digests(weights.read_bytes())[0]
    return TrainedModel(name, network, weights, digest, preprocessor, names, activation or "softmax")


def build(model: str) -> nn.Module:
    """Import MODULE, also from the current directory, and call its CALLABLE. Raises ConversionError.

    The network is on the CPU, in float32 and in evaluation mode, however it was built.
    """
    module, _, attribute = model.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        if is_name_clash(top := module.partition(".")[0]):
            raise ImportError(f"'{top}' is ambiguous")
        network = getattr(importlib.import_module(module), attribute)()
        if not isinstance(network, nn.Module):
            raise TypeError(f"it gave {type(network).__name__}, not a torch.nn.Module")
        network.cpu().float()
        network.eval()
    except (Exception, SystemExit) as error:  # a user's code, which may raise anything
        hint = "it must be importable from here and callable without arguments"
        if clash := next(filter(is_name_clash, re.findall(r"'(\w+)[.']", str(error))), None):
            hint = f"this repository has a module named {clash} too: rename yours"
        raise ConversionError(f"{model} failed: {format_error(error)}; {hint}") from error
    return network


def is_name_clash(name: str) -> bool:
    """Return whether a module of that name is in the current directory and another in this repository."""
    theirs, ours = (PathFinder.find_spec(name, [str(folder)]) for folder in (Path.cwd(), ROOT))
    return bool(theirs and ours and theirs.origin != ours.origin)


@torch.no_grad()
def probe_outputs(network: nn.Module, shape: Sequence[int]) -> torch.Tensor:
    """Return the network's outputs, [batch, classes], for normalized noise of `shape`. Raises ConversionError.

    They must be finite numbers, and for each image independent of the rest of its batch.
    """
    noise = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    given = noise.clone()
    try:
        outputs, alone = network(given), [network(image.clone()) for image in noise.split(1)]
    except (Exception, SystemExit) as error:  # as above
        reason = f"{format_error(error)}\n--size and --channels set the shape"
        raise ConversionError(f"the network fails on images of {list(shape)}: {reason}") from error
    if not isinstance(outputs, torch.Tensor):
        raise ConversionError(
            f"the network gives {type(outputs).__name__}; expected one tensor, [batch, classes]. Name a subclass like\n"
            f"    class Logits({type(network).__name__}):\n"
            "        def forward(self, x):\n"
            "            return super().forward(x).logits"
        )
    if not torch.equal(given, noise):
        raise ConversionError("the network changes its input in place: let it begin with x = x.clone()")
    for batch, rows in ((4, outputs), *((1, row) for row in alone)):
        is_matrix = rows.ndim == 2 and rows.shape == (batch, outputs.shape[1])
        if not (is_matrix and rows.numel() and rows.is_floating_point()):
            actual = f"{rows.dtype} {list(rows.shape)} for {batch} images"
            raise ConversionError(f"the network gives {actual}; expected float [{batch}, classes]")
    if not outputs.isfinite().all():
        raise ConversionError("the network's outputs are not all finite numbers")
    if not (torch.cat(alone) - outputs).abs().max() <= 1e-3 * outputs.abs().max():  # rounding is far less
        raise ConversionError("the network is random, also in evaluation mode, or depends on the rest of the batch")
    return outputs


def check_activation(activation: str | None, outputs: torch.Tensor) -> None:
    """Raise ConversionError if the result would not be probabilities, or if logits seem to be probabilities already."""
    are_probabilities = ((outputs >= 0) & (outputs <= 1.001)).all()
    spread = f"the network's outputs, from {outputs.min():.3g} to {outputs.max():.3g},"
    if activation is None and are_probabilities:
        raise ConversionError(f"{spread} may be probabilities already: give --activation none, or the missing one")
    if activation == "none" and not are_probabilities:
        raise ConversionError(f"{spread} are not probabilities: give --activation softmax or sigmoid")
    if activation in (None, "softmax") and outputs.shape[1] == 1:
        raise ConversionError("softmax over one output is always 1: give --activation sigmoid or none")


def name_classes(labels: Path | None, outputs: int) -> list[str]:
    """Return the class names, by default class 0, class 1 and so on. Raises ConversionError if their number is wrong.

    One output is the probability of the second of two classes, which `labels` may name alone.
    """
    classes = max(outputs, 2)
    names = read_labels(labels) if labels else [f"class {number}" for number in range(classes)]
    if outputs == len(names) == 1:
        names = [f"not {names[0]}", names[0]]
    if len(names) != classes:
        raise ConversionError(f"{labels} has {len(names)} class names, the network has {classes} classes")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        print(f"{labels}: warning: several classes have the same name: {enumerate_few(twice)}", file=sys.stderr)
    return names


def read_labels(path: Path) -> list[str]:
    """Return the class names in a file: one per line in the order of the classes, or JSON. Raises ConversionError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith(("[", "{")):
            names = names_from_json(json.loads(text))
        else:
            names = [line.strip() for line in text.rstrip().split("\n")]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ConversionError(f"{path} cannot be read as class names: {error!r}") from error
    if not all(names):
        raise ConversionError(f"{path}: class {names.index('')} has no name")
    return names


def names_from_json(content: Any) -> list[str]:
    """Return the class names of a list, of a dictionary with ids, or of a configuration with `id2label`.

    Instead of a name there may be a list that ends with it. Raises ValueError, TypeError, LookupError, AttributeError.
    """
    if isinstance(content, dict):
        by_id = content.get("id2label", content)
        if all(isinstance(value, int) for value in by_id.values()):  # ids by name
            by_id = {number: name for name, number in by_id.items()}
        by_id = {int(number): name for number, name in by_id.items()}
        content = [by_id[number] for number in range(len(by_id))]
    return [str.strip(item[-1] if isinstance(item, list) else item) for item in content]  # TypeError unless a string


def format_error(error: BaseException) -> str:
    """Return an error of a user's code in one line, with the last place that is not in PyTorch or Python."""
    while error.__cause__:
        error = error.__cause__
    libraries = (sysconfig.get_path("stdlib"), str(Path(torch.__file__).parent), __file__, "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(libraries)]
    reason = f"{type(error).__name__}: {textwrap.shorten(str(error), 300, placeholder=' …')}"
    return f"{reason} ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})" if frames else reason
