"""The conversion of a PyTorch model to ONNX, and its verification. The only package that imports torch."""


class ConversionError(Exception):
    """The model cannot be converted correctly; the message has the reason and what to do."""
