"""Load weights, of torch.save or safetensors, into a network: only if all are there, and never running code."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.parameter import is_lazy

from conversion import ConversionError, enumerate_few

Tensors = Mapping[str, torch.Tensor]
BATCH_COUNTER = "num_batches_tracked"  # of batch norm: evaluation does not need it, and old files lack it
OTHER_FILES = {  # by their first bytes
    b"<": "is a web page, not weights: download the file itself",
    b"version https://git-lfs": "is a Git LFS pointer, not weights: run `git lfs pull`",
    b"{": "is JSON, such as the index of weights in several files: merge those files into one",
}


def load_weights(network: nn.Module, path: Path, key: str | None = None) -> None:
    """Load the file `path` into `network`, and print the names of the tensors that are ignored.

    `key` selects one of several sets of weights in a checkpoint. Raises ConversionError.
    """
    own, tensors = flatten(network.state_dict()), read_tensors(path)
    readings = find_names(list(own), tensors, f"{key}." if key else "")
    problems = {prefix: explain_misfit(own, tensors, prefix, names) for prefix, names in readings.items()}
    fitting = [prefix for prefix in readings if not problems[prefix]]
    if len(fitting) > 1:
        choice = " or ".join(prefix.rstrip(".") for prefix in fitting)
        raise ConversionError(f"{path} has {len(fitting)} sets of weights: select one with --weights-key {choice}")
    if not fitting:
        reason = next(iter(problems.values()), f"no name in it is one of the network's: {enumerate_few(list(tensors))}")
        raise ConversionError(f"{path} does not fit the network: {reason}")
    names = readings[fitting[0]]
    if ignored := sorted(tensors.keys() - names.values()):
        print(f"{path}: ignored, because the network has no such tensors: {enumerate_few(ignored)}", flush=True)
    try:
        network.load_state_dict({name: tensors[there] for name, there in names.items()})
    except Exception as error:  # hooks in a user's network
        raise ConversionError(f"{path} does not fit the network: {error}") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors in the file `path` by name. Raises ConversionError."""
    if not path.is_file():
        raise ConversionError(f"{path} is a directory: name a file" if path.is_dir() else f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(100)
    for signature, what in OTHER_FILES.items():
        if start.lstrip().startswith(signature):
            raise ConversionError(f"{path} {what}")
    is_safetensors = start[8:9] == b"{"  # JSON after eight bytes with its length: no pickle or zip has it there
    try:
        return flatten(load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # the decoders' own; their messages advise to load the file unsafely
        what = "is damaged, or not a file that torch.save or safetensors wrote"
        if forbidden := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            what = f"holds {forbidden[1]}, which could run code: save the network's state_dict() alone"
        if "TorchScript" in str(error):
            what = "is a TorchScript archive: load it with torch.jit.load and save its state_dict()"
        raise ConversionError(f"{path} {what}") from error


def flatten(content: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors in nested dictionaries, by their keys joined with dots, without BATCH_COUNTER."""
    tensors: dict[str, torch.Tensor] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        name = f"{prefix}{key}"
        if not name.endswith(BATCH_COUNTER):
            tensors |= {name: value} if isinstance(value, torch.Tensor) else flatten(value, f"{name}.")
    return tensors


def dotted_prefixes(name: str) -> list[str]:
    """Return '', 'a.' and 'a.b.' for 'a.b.c'."""
    return [name[:end] for end in range(len(name)) if end == 0 or name[end - 1] == "."]


def find_names(own: list[str], tensors: Tensors, start: str) -> dict[str, dict[str, str]]:
    """Return the prefixes, all beginning with `start`, under which a file has most of the network's `own` names.

    Each comes with the own names and those in the file. A checkpoint, DataParallel or torch.compile puts a prefix
    before the names in the file, a wrapper before the network's own.
    """
    found: dict[str, dict[str, str]] = {}
    most = 0
    wrappers = dotted_prefixes(min(own, default=""))
    for wrapper in (prefix for prefix in wrappers if all(name.startswith(prefix) for name in own)):
        ends = {name.removeprefix(wrapper) for name in own}
        prefixes = (prefix for name in tensors for prefix in dotted_prefixes(name) if name.removeprefix(prefix) in ends)
        hits = Counter(prefix for prefix in prefixes if prefix.startswith(start))
        if max(hits.values(), default=0) > most:
            most = max(hits.values())
            best = [prefix for prefix in hits if hits[prefix] == most]
            found = {prefix: {name: prefix + name.removeprefix(wrapper) for name in own} for prefix in best}
    return found


def explain_misfit(own: Tensors, tensors: Tensors, prefix: str, names: Mapping[str, str]) -> str:
    """Return why the tensors under `prefix` are not the network's, or '' if they are.

    Others next to them do no harm, such as a loss function's. Weights in one of the network's own parts do: they are
    those of a network with more layers.
    """
    missing = [name for name, there in names.items() if there not in tensors]
    shapes = [
        f"{name} {list(tensors[there].shape)} instead of {list(own[name].shape)}"
        for name, there in names.items()
        if there in tensors and not is_lazy(own[name]) and tensors[there].shape != own[name].shape
    ]
    extra = sorted(name for name in tensors.keys() - names.values() if name.startswith(prefix))
    if not missing:
        parts = {there.removeprefix(prefix).partition(".")[0] for there in names.values()}
        extra = [name for name in extra if name.removeprefix(prefix).partition(".")[0] in parts]
        extra = [name for name in extra if tensors[name].is_floating_point() and tensors[name].numel() > 1]
    found = {"missing": missing, "unexpected": extra, "wrong shape": shapes}
    return "; ".join(f"{what}: {enumerate_few(which)}" for what, which in found.items() if which)
