"""The conversion of a PyTorch model to ONNX, and its verification. The only package that imports torch."""

from collections.abc import Sequence


class ConversionError(Exception):
    """The model cannot be converted correctly; the message has the reason and what to do."""


def enumerate_few(names: Sequence[str]) -> str:
    """Return the first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
