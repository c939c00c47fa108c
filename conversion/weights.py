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
    try:
        is_safe = path.suffix == ".safetensors"
        content: Any = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # somebody else's decoder, whose own words would have the reader load it unsafely
        raise ConversionError(f"{path} {_why_unreadable(path, str(error))}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in CHECKPOINT_KEYS if isinstance(content.get(key), dict)), content)
    own = list(network.state_dict())
    try:
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in content) and not any(key.startswith(prefix) for key in own):
                consume_prefix_in_state_dict_if_present(content, prefix)
        network.load_state_dict(content, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        # PyTorch's list of what does not fit can be as long as the network.
        lines = [textwrap.shorten(line, 200, placeholder=" …") for line in str(error).splitlines()[:6]]
        raise ConversionError(f"{path} does not fit the network: " + "\n".join(lines)) from error


def _why_unreadable(path: Path, message: str) -> str:
    if path.read_bytes().lstrip().startswith(b"<"):
        return "is a web page, not weights"
    if forbidden := re.search(r"Unsupported global: GLOBAL (\S+)", message):
        return f"holds {forbidden[1]}, which could run code: save the network's state_dict() alone"
    return "is damaged, or not a state dict that torch.save or safetensors wrote"
