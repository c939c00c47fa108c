"""Banana's contract: `init()` once at the start, then `inference()` for every call.

Knows nothing of HTTP. server.py calls it, and so may any other platform that works with plain dictionaries.
"""

from contextlib import ExitStack
from threading import BoundedSemaphore, Lock
from time import perf_counter, thread_time
from typing import Any

import numpy as np

from model import OnnxClassifier
from runtime.base64_text import decode_base64
from runtime.decoding import MAX_CPU_S
from runtime.errors import InvalidInput, Unavailable
from runtime.settings import ModelSettings, available_cpus, read

SETTINGS = read(ModelSettings)
VERSION = "1.0.0"  # of this server
# While each thread has an image in the model, others are decoded, read from JSON or answered.
MORE_WORKERS = 3
THREADS = SETTINGS.THREADS or available_cpus()
WORKERS = THREADS + MORE_WORKERS  # calls to process at a time

# An image of 25 megapixels takes up to 400 MB while it is decoded, so large ones are decoded one at a time. A few calls
# may wait for that, but not in so many workers that small images would have to.
_decoding_large = Lock()
_large_calls = BoundedSemaphore(WORKERS - 2)
# To open a file of a million empty chunks takes 1.5 s of CPU, however few its pixels are. So a call whose images have
# more bytes together takes its turn before any is opened.
LARGE_BYTES = 4_000_000

classifier: OnnxClassifier | None = None


def init() -> None:
    """Load the model of MODEL_PATH and let it answer once. Raises InvalidModel or ProviderUnavailable."""
    global classifier
    classifier = OnnxClassifier(
        SETTINGS.MODEL_PATH, SETTINGS.EXECUTION_PROVIDER, SETTINGS.PRECISION, THREADS, SETTINGS.MAX_PIXELS
    )
    warm_up()


def warm_up() -> None:
    """Let the model answer an empty image. Raises what ONNX Runtime raises where it cannot."""
    height, width = classifier.preprocessor.size
    classifier.predict(np.zeros((1, height, width, 3), np.uint8))


def status() -> dict:
    """Return what runs here: the model and its weights' digest, the execution provider really in use, the version."""
    runner = classifier.runner
    return {
        "model": classifier.model_name,
        "weights": classifier.weights_digest,
        "classes": len(classifier.class_names),
        "execution_provider": runner.provider,
        "precision": runner.precision,
        "gpu": runner.provider == "CUDAExecutionProvider",
        "version": VERSION,
    }


def inference(model_inputs: dict) -> dict:
    """Classify the image of `image`, or the images of `images`: base64 text, the file's own bytes, or pixels.

    `top_k` (default 5) says how many classes to name, `probabilities` whether to return the whole array too.
    Raises InvalidInput, or Unavailable where too many large images are being decoded.
    """
    started = perf_counter()
    images, top_k, with_probabilities = _check(model_inputs)
    several = "images" in model_inputs
    with _Turn() as turn:
        if sum(len(image) for image in images if isinstance(image, str | bytes)) > LARGE_BYTES:
            turn.take()
        deadline = thread_time() + MAX_CPU_S
        prepared = [
            _prepare(image, f"images[{n}]: " if several else "", deadline, turn) for n, image in enumerate(images)
        ]
    decoded = perf_counter()
    probabilities = classifier.predict(np.stack([pixels for pixels, _ in prepared]))
    ran = perf_counter()
    results = []
    for (_, described), row in zip(prepared, probabilities, strict=True):
        predictions = classifier.top(row, top_k)
        result = predictions[0] | {"predictions": predictions}
        if with_probabilities:
            result["probabilities"] = row.tolist()
        results.append(result | {"image": described})
    timing = {"decode": decoded - started, "model": ran - decoded, "total": perf_counter() - started}
    answer = {"results": results} if several else results[0]
    return answer | {"timing_ms": {name: round(seconds * 1e3, 3) for name, seconds in timing.items()}}


def _check(model_inputs: dict) -> tuple[list, int, bool]:
    """Return the images, top_k, and whether the whole array is wanted. Raises InvalidInput."""
    if not isinstance(model_inputs, dict):
        raise InvalidInput('expected a JSON object such as {"image": "<base64>"}')
    several = "images" in model_inputs
    if several == ("image" in model_inputs):
        raise InvalidInput('expected one of "image", the picture in base64, and "images", a list of such')
    images = model_inputs["images"] if several else [model_inputs["image"]]
    if not isinstance(images, list) or not 1 <= len(images) <= SETTINGS.MAX_IMAGES:
        raise InvalidInput(f'"images" has to be a list of 1 to {SETTINGS.MAX_IMAGES} pictures')
    top_k = model_inputs.get("top_k", 5)
    if type(top_k) is not int or top_k < 1:
        raise InvalidInput('"top_k" has to be a whole number of at least 1')
    with_probabilities = model_inputs.get("probabilities", False)
    if type(with_probabilities) is not bool:
        raise InvalidInput('"probabilities" has to be true or false')
    return images, top_k, with_probabilities


class _Turn(ExitStack):
    """A call's turn to decode large images, which ends with the context."""

    taken = False

    def take(self) -> None:
        """Wait for the turn, unless the call has it. Raises Unavailable where too many wait already."""
        if self.taken:
            return
        if not _large_calls.acquire(blocking=False):
            raise Unavailable("other large pictures are being decoded")
        self.callback(_large_calls.release)
        self.enter_context(_decoding_large)
        self.taken = True


def _prepare(image: Any, where: str, deadline: float, turn: _Turn) -> tuple[np.ndarray, dict]:
    """Return an image at the model's size, and what it was before. Raises InvalidInput or Unavailable."""
    opened: Any = None
    try:
        if isinstance(image, str):
            image = decode_base64(image)
        elif not isinstance(image, bytes | np.ndarray):
            raise InvalidInput("a picture has to be base64 text")
        opened = classifier.preprocessor.open(image, deadline)
        described = {"format": opened.format or "pixels", "width": opened.width, "height": opened.height}
        if classifier.preprocessor.is_large(opened):
            turn.take()
        return classifier.preprocessor(opened), described
    except InvalidInput as error:
        message = f"{where}{error}"
    # Not within `except`, and without the image: an error keeps what its frames hold, here until it is answered.
    del image, opened
    raise InvalidInput(message)
