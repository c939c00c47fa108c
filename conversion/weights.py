"""Load weights, of torch.save or safetensors, into a network: only if all are there, and never running code."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.parameter import is_lazy

from conversion import ConversionError, enumerate_few

Tensors = dict[str, torch.Tensor]
BATCH_COUNTER = "num_batches_tracked"  # of batch norm: evaluation does not need it, and old files lack it
OTHER_FILES = {  # by what the file begins with, or by the error of PyTorch's decoder
    r"\A\s*<": "is a web page, not weights: download the file itself",
    r"\Aversion https://git-lfs": "is a Git LFS pointer, not weights: run `git lfs pull`",
    r"\A\s*{": "is JSON, such as the index of weights in several files: merge those files into one",
    r"TorchScript": "is a TorchScript archive: load it with torch.jit.load and save its state_dict()",
    r"Unsupported global: GLOBAL (\S+)": r"holds \1, which could run code: save the network's state_dict() alone",
    r"": "is damaged, or not a file that torch.save or safetensors wrote",
}


def load_weights(network: nn.Module, path: Path, key: str | None = None) -> None:
    """Load the file `path` into `network`, and print the names of the tensors that are ignored.

    In the file the network's names may have any prefix, such as a checkpoint's or torch.compile's. If several sets of
    weights fit, `key` must select one. Raises ConversionError, or OSError if the file cannot be read.
    """
    own, tensors = flatten(network.state_dict()), read_tensors(path)
    candidates = [name for name in tensors if name.startswith(f"{key}." if key else "")]
    common = os.path.commonprefix(list(own))  # noqa: RUF071  of characters: the next line cuts it at a dot
    for wrapper in ("", common[: common.rfind(".") + 1]):  # the network may wrap the one that the file is of
        wanted = {name.removeprefix(wrapper): tensor for name, tensor in own.items()}
        first = next(iter(wanted), "")
        prefixes = [name.removesuffix(first) for name in candidates if f".{name}".endswith(f".{first}")]
        if prefixes:
            break
    misfits = {prefix: explain_misfit(wanted, tensors, prefix) for prefix in prefixes}
    fitting = [prefix for prefix, misfit in misfits.items() if not misfit]
    if len(fitting) > 1:
        choice = " or ".join(prefix.rstrip(".") for prefix in fitting)
        raise ConversionError(f"{path} has {len(fitting)} sets of weights: select one with --weights-key {choice}")
    if not fitting:
        unknown = f"no name in it ends with the network's first, {first}: {enumerate_few(list(tensors))}"
        raise ConversionError(f"{path} does not fit the network: {next(iter(misfits.values()), unknown)}")
    if ignored := sorted(tensors.keys() - {fitting[0] + name for name in wanted}):
        print(f"{path}: ignored, because the network has no such tensors: {enumerate_few(ignored)}", flush=True)
    network.load_state_dict({wrapper + name: tensors[fitting[0] + name] for name in wanted})


def read_tensors(path: Path) -> Tensors:
    """Return all tensors in the file `path` by name. Raises ConversionError, or OSError if it cannot be read."""
    with path.open("rb") as file:
        start = file.read(100)
    is_safetensors = start[8:9] == b"{"  # JSON after eight bytes with its length: no pickle or zip has it there
    try:
        return flatten(load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # the decoders' own; their messages advise to load the file unsafely
        clues = f"{start.decode('latin-1')}\n{error}"
        reasons = (match.expand(what) for pattern, what in OTHER_FILES.items() if (match := re.search(pattern, clues)))
        raise ConversionError(f"{path} {next(reasons)}") from error


def flatten(content: Any, prefix: str = "") -> Tensors:
    """Return the tensors in nested dictionaries, by their keys joined with dots, without BATCH_COUNTER."""
    tensors: Tensors = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        name = f"{prefix}{key}"
        if not name.endswith(BATCH_COUNTER):
            tensors |= {name: value} if isinstance(value, torch.Tensor) else flatten(value, f"{name}.")
    return tensors


def explain_misfit(wanted: Tensors, tensors: Tensors, prefix: str) -> str:
    """Return why the tensors under `prefix` are not the `wanted` ones, or '' if they are.

    Others next to them do no harm, such as a loss function's. Weights in one of the network's own parts do: they are
    those of a network with more layers.
    """
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    shapes = [
        f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and not is_lazy(tensor) and found[name].shape != tensor.shape
    ]
    extra = sorted(found.keys() - wanted.keys())
    missing = [name for name in wanted if name not in found]
    if not missing:
        parts = {name.partition(".")[0] for name in wanted}
        extra = [name for name in extra if name.partition(".")[0] in parts and found[name].numel() > 1]
        extra = [name for name in extra if found[name].is_floating_point()]
    problems = {"missing": missing, "unexpected": extra, "wrong shape": shapes}
    return "; ".join(f"{what}: {enumerate_few(names)}" for what, names in problems.items() if names)
