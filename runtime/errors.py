"""Errors that pass between the packages, and what an error keeps in memory."""

import traceback


class InvalidInput(ValueError):
    """The request cannot be classified; the message includes what to do about it."""


class InvalidModel(ValueError):
    """The ONNX file is missing, damaged, or not one that convert_to_onnx.py wrote."""


class BackendUnavailable(Exception):
    """The requested backend does not work on this machine; the message is the reason."""


class Unavailable(Exception):
    """The request cannot be processed now, but may be retried; the message is the reason. A server responds 503."""


def release_frames(error: BaseException) -> None:
    """Free the local variables that an error's traceback, and those of its causes, keep alive.

    Otherwise a request's body and all that was made of it stay in memory until the response is sent. Functions that
    are still running keep theirs, so call this where the error is caught. The traceback can still be logged.
    """
    traceback.clear_frames(error.__traceback__)
    for cause in {error.__cause__, error.__context__} - {None}:
        release_frames(cause)  # type: ignore[arg-type]
