"""Read a file of weights into a network: safely, and only where every key fits.

Takes a state dict or a checkpoint that holds one, as torch.save writes them, and safetensors. No code of the file's
is ever run.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from conversion import ConversionError

CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")  # where training scripts keep the weights
PREFIXES = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and Lightning put before every key


def load_weights(network: nn.Module, path: Path) -> None:
    """Load the weights in the file `path` into `network`: every key must fit. Raises ConversionError."""
    if not path.is_file():
        raise ConversionError(f"{path} is not there")
    state_dict = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    try:
        _strip_prefixes(state_dict, network)
        network.load_state_dict(state_dict, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path} does not fit the network: {_shortened(str(error))}") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # somebody else's decoder, of a file that may be anything
        raise ConversionError(f"{path} is not safetensors, or is damaged: {error}") from error


def _read_pickled(path: Path) -> Any:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # as above; torch's own words would have the reader load it unsafely
        raise ConversionError(f"{path} {_why_unreadable(path, str(error))}") from error
    if isinstance(content, dict):
        for key in CHECKPOINT_KEYS:
            if isinstance(content.get(key), dict):
                return content[key]
    return content


def _why_unreadable(path: Path, message: str) -> str:
    with path.open("rb") as file:
        if file.read(512).lstrip()[:1] == b"<":
            return "is a web page, not weights"
    if forbidden := re.search(r"Unsupported global: GLOBAL (\S+)", message):
        return f"holds {forbidden[1]}, which could run code: save the network's state_dict() alone"
    return "is damaged, or not a state dict that torch.save wrote"


def _strip_prefixes(state_dict: dict, network: nn.Module) -> None:
    own = list(network.state_dict())
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state_dict) and not any(key.startswith(prefix) for key in own):
            consume_prefix_in_state_dict_if_present(state_dict, prefix)


def _shortened(message: str, lines: int = 6) -> str:
    """Return the first lines of PyTorch's list of what does not fit, which can be as long as the network."""
    first = [textwrap.shorten(line, 200, placeholder=" …") for line in message.splitlines()[:lines]]
    return "\n".join(first)
