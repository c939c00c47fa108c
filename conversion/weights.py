"""Load weights, of torch.save or safetensors, into a network: only if all are there, and never running code."""

import os
import re
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from conversion import ConversionError

Tensors = dict[str, torch.Tensor]
shorten = partial(textwrap.shorten, width=200, placeholder=" …")
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
    own, tensors = list(flatten(network.state_dict())), read_tensors(path)
    common = os.path.commonprefix(own)  # noqa: RUF071  of characters: the next line cuts it at a dot
    for wrapper in (common[: dot.end()] for dot in re.finditer(r"^|\.", common)):  # the network may wrap the file's
        # The longest name, because no other can end with it.
        longest = max((name for name in own if "num_batches" not in name), key=len, default="").removeprefix(wrapper)
        prefixes = [name.removesuffix(longest) for name in tensors if f".{name}".endswith(f".{longest}")]
        prefixes = sorted((prefix for prefix in prefixes if prefix.startswith(f"{key}." if key else "")), key=len)
        misfits = {prefix: load_set(network, tensors, prefix, wrapper) for prefix in prefixes}
        if misfits:
            break
    fitting = [prefix for prefix, misfit in misfits.items() if not misfit]
    if len(fitting) > 1:
        choice = " or ".join(prefix.rstrip(".") for prefix in fitting)
        raise ConversionError(f"{path} has {len(fitting)} sets of weights: select one with --weights-key {choice}")
    if not fitting:
        unknown = shorten(f"no name in it has the form {key or ''}…{longest}: {', '.join(tensors) or 'it has none'}")
        raise ConversionError(f"{path} does not fit the network: {next(iter(misfits.values()), unknown)}")
    load_set(network, tensors, fitting[0], wrapper)  # again, because a set that does not fit may have come after it
    if ignored := sorted(tensors.keys() - {fitting[0] + name.removeprefix(wrapper) for name in own}):
        print(f"{path}: ignored, because the network has no such tensors: {shorten(', '.join(ignored))}", flush=True)


def load_set(network: nn.Module, tensors: Tensors, prefix: str, wrapper: str) -> str:
    """Load the tensors under `prefix` as the network's under `wrapper`; return why they do not fit, or ''."""
    found = {wrapper + name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    own = network.state_dict()
    parts = {name.removeprefix(wrapper).partition(".")[0] for name in own}
    # Others do no harm, such as a loss function's. But weights in the network's own parts are those of a deeper one.
    is_complete = all(name in found for name in own if "num_batches" not in name)  # batch norm's, often left out
    for name in found.keys() - own.keys() if is_complete else ():
        is_weight = found[name].is_floating_point() and found[name].numel() > 1
        if not (is_weight and name.removeprefix(wrapper).partition(".")[0] in parts):
            del found[name]
    try:
        nn.Module.load_state_dict(network, found)  # strictly, whatever the network's own does
    except Exception as error:  # lists missing names, unexpected names and wrong shapes in a line each; or a hook's own
        lines = [line for line in str(error).splitlines() if not line.startswith("Error(s) in loading")]
        return "; ".join(map(shorten, lines[:3])) or repr(error)
    return ""


def read_tensors(path: Path) -> Tensors:
    """Return all tensors in the file `path` by name. Raises ConversionError, or OSError if it cannot be read."""
    if not path.is_file():
        raise ConversionError(f"{path} is {'a folder' if path.is_dir() else 'not a file that exists'}: name a file")
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
    """Return the tensors in nested dictionaries, by their keys joined with dots."""
    tensors: Tensors = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        name = f"{prefix}{key}"
        tensors |= {name: value} if isinstance(value, torch.Tensor) else flatten(value, f"{name}.")
    return tensors
