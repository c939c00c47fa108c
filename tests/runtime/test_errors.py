"""errors.py: an error that is kept does not keep what the functions that raised it worked on."""

import gc
import traceback
import weakref

from runtime.errors import InvalidInput, release_frames


class Body:
    """Stands for a large body; unlike bytes it can be watched."""


def fail(body: Body) -> None:
    """Raise an error with a cause, each from a function that holds the body."""

    def decode(text: Body) -> None:
        raise ValueError("the cause")

    try:
        decode(body)
    except ValueError as error:
        raise InvalidInput("why") from error


def test_an_error_whose_frames_are_released_keeps_no_variables():
    gc.disable()
    try:
        body = Body()
        watched = weakref.ref(body)
        try:
            fail(body)
        except InvalidInput as error:
            kept = error
        del body
        assert watched() is not None
        release_frames(kept)
        assert watched() is None
    finally:
        gc.enable()
    lines = "".join(traceback.format_exception(kept))
    assert "decode(body)" in lines and "the cause" in lines
