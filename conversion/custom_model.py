"""Load any PyTorch image classifier that a user's module builds; refuse what would silently be converted wrongly."""

import importlib.machinery
import json
import re
import sys
import sysconfig
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conversion import ConversionError
from conversion.files import digests
from conversion.trained_model import ACTIVATIONS, Probabilities, TrainedModel
from conversion.weights import load_weights, shorten
from model import ImagePreprocessor
from runtime.settings import ROOT


def load(
    model: str,
    weights: Path,
    weights_key: str | None = None,
    labels: Path | None = None,
    activation: str | None = None,
    channels: int = 3,
    **preprocessing: Any,
) -> TrainedModel:
    """Build the network of `model`, MODULE:CALLABLE, and load the file `weights` into it, as load_weights does.

    `labels` is a file that name_classes accepts. `activation` makes the outputs probabilities; default: softmax.
    `preprocessing` is for ImagePreprocessor. Raises ConversionError, OSError, or what the network raises.
    """
    preprocessor = ImagePreprocessor(**preprocessing)
    for option, values, least in (("--mean", preprocessor.mean, float("-inf")), ("--std", preprocessor.std, 0)):
        if len(values) != channels or not all(least < value <= 1 for value in values):
            rule = f"{channels} numbers, one per channel, of at most 1 (--std: also more than 0)"
            raise ConversionError(f"{option} must be {rule}, not {values}: divide those for pixels of 0 to 255 by 255")
    network = build(model)
    load_weights(network, weights, weights_key)
    names = name_classes(labels, count_outputs(network, (channels, *preprocessor.size), activation))
    name, digest = model.replace(":", "."), digests(weights.read_bytes())[0]
    activation = activation or "softmax"
    network = Probabilities(network, ACTIVATIONS[activation]).eval()
    return TrainedModel(name, network, weights, digest, preprocessor, names, activation)


def build(model: str) -> nn.Module:
    """Return what MODULE:CALLABLE builds, on the CPU, in float32 and in evaluation mode. Raises ConversionError."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        module, _, attribute = model.partition(":")
        if is_name_clash(module.partition(".")[0]):
            raise ImportError(f"'{module}' is ambiguous")
        network = getattr(importlib.import_module(module), attribute)()
        network.cpu().float().eval()
    except (Exception, SystemExit) as error:  # a user's code, which may raise anything
        hint = "it must be importable from here, callable without arguments, and return a torch.nn.Module"
        if clash := next(filter(is_name_clash, re.findall(r"'(\w+)[.']", str(error))), None):
            hint = f"this repository has a module named {clash} too: rename yours"
        raise ConversionError(f"{model} failed: {format_error(error)}; {hint}") from error
    return network


def is_name_clash(name: str) -> bool:
    """Return whether a module of that name is in the current directory and another in this repository."""
    theirs, ours = (importlib.machinery.PathFinder.find_spec(name, [str(folder)]) for folder in (Path.cwd(), ROOT))
    return bool(theirs and ours and theirs.origin != ours.origin)


@torch.no_grad()
def count_outputs(network: nn.Module, shape: tuple[int, ...], activation: str | None) -> int:
    """Return the number of outputs that the network has for an image, here normalized noise of `shape`.

    Raises ConversionError unless they are finite, independent of the rest of the batch, and what `activation` expects.
    """
    noise = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    given = noise.clone()
    outputs, alone = network(given), [network(image.clone()) for image in noise.split(1)]
    if not isinstance(outputs, torch.Tensor):
        problem = f"the network gives {type(outputs).__name__}; expected one tensor, [batch, classes]"
        base, forward = type(network).__name__, "def forward(self, x): return super().forward(x).logits"
        raise ConversionError(f"{problem}. Name a subclass like\n    class Logits({base}):\n        {forward}")
    if not torch.equal(given, noise):
        raise ConversionError("the network changes its input in place: let it begin with x = x.clone()")
    classes = outputs.numel() // 4
    for batch, rows in ((4, outputs), *((1, row) for row in alone)):
        if rows.shape != (batch, classes) or not classes or not rows.is_floating_point():
            raise ConversionError(f"the network gives {rows.dtype} {list(rows.shape)}, not float [{batch}, classes]")
    if not outputs.isfinite().all():
        raise ConversionError("the network's outputs are not all finite numbers")
    if not (torch.cat(alone) - outputs).abs().max() <= 1e-3 * outputs.abs().max():  # rounding is far less
        raise ConversionError("the network is random, also in evaluation mode, or depends on the rest of the batch")
    are_probabilities = ((outputs >= 0) & (outputs <= 1.001)).all()
    if (activation is None and are_probabilities) or (activation == "none" and not are_probabilities):
        spread = f"the network's outputs are from {outputs.min():.3g} to {outputs.max():.3g}"
        raise ConversionError(f"{spread}: give --activation none if they are probabilities, else softmax or sigmoid")
    if activation in (None, "softmax") and classes == 1:
        raise ConversionError("softmax over one output is always 1: give --activation sigmoid or none")
    return classes


def name_classes(path: Path | None, outputs: int) -> list[str]:
    """Return the class names in a file, one per line or JSON; without a file class 0, class 1 and so on.

    JSON is a list, a dictionary with ids, or a configuration with `id2label`. A list in place of a name ends with it.
    One output is the probability of the second of two classes, which may be named alone. Raises ConversionError.
    """
    classes = max(outputs, 2)
    if path is None:
        return [f"class {number}" for number in range(classes)]
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if text.lstrip().startswith(("[", "{")) else text.rstrip().split("\n")
        if isinstance(content, dict):
            labels = content.get("id2label", content).items()  # or torchvision's class_to_idx
            by_id = dict((label, key) if isinstance(label, int) else (int(key), label) for key, label in labels)
            content = [by_id[number] for number in range(len(by_id))]
        names = [str.strip(item[-1] if isinstance(item, list) else item) for item in content]
    except Exception as error:  # of whatever is not as above
        raise ConversionError(f"{path} cannot be read as class names: {error!r}") from error
    if outputs == len(names) == 1:
        names = [f"not {names[0]}", names[0]]
    if len(names) != classes or "" in names:
        gap = f", of which class {names.index('')} is empty" if "" in names else ""
        raise ConversionError(f"{path} has {len(names)} class names{gap}; the network has {classes} classes")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        print(f"{path}: warning: repeated names: {shorten(', '.join(twice))}", file=sys.stderr)
    return names


def format_error(error: BaseException) -> str:
    """Return an error of a user's code in one line, with the last place that is not in PyTorch or Python."""
    while error.__cause__:
        error = error.__cause__
    skip = (Path(__file__).parent, ROOT / "convert_to_onnx.py", sysconfig.get_path("stdlib"), *torch.__path__, "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(tuple(map(str, skip)))]
    reason = f"{type(error).__name__}: {shorten(str(error), width=300)}"
    return f"{reason} ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})" if frames else reason
