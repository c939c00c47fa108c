"""Errors that pass between the packages. Imports nothing."""


class InvalidInput(ValueError):
    """The caller sent something that cannot be classified; the message says what to do about it."""


class InvalidModel(ValueError):
    """The ONNX file is missing, damaged, or not one that convert_to_onnx.py wrote."""


class ProviderUnavailable(Exception):
    """The execution provider asked for does not work here; the message says why."""


class Unavailable(Exception):
    """No answer can be had now, but may be had soon; the message says why. A server answers 503."""
