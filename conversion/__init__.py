"""What converts a PyTorch model to ONNX, and verifies the file. The only package that imports torch."""


class ConversionError(Exception):
    """The model cannot become an ONNX file that is right; the message says why, and what to do about it."""
