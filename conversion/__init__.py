"""What converts a PyTorch model to ONNX, and verifies the file. The only package that imports torch."""

from collections.abc import Sequence


class ConversionError(Exception):
    """The model cannot become an ONNX file that is right; the message says why, and what to do about it."""


def enumerate_few(names: Sequence[str]) -> str:
    """Return the first names and how many there are besides."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
