"""Banana's contract: `init()` once at the start, then `inference()` for every call.

    python -c "import app; app.init(); print(app.inference({'image': open('picture.jpg', 'rb').read()}))"

Knows nothing of HTTP. The server calls it, and so may any other platform that works with plain dictionaries.
"""

import os
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from base64_text import InvalidBase64, decode_base64
from model import InvalidImage, OnnxClassifier, Prepared
from providers import OPENERS
from settings import available_cpus, choice, integer

# -- settings, from the environment --------------------------------------------------------------------------------
MODEL_PATH = os.environ.get("MODEL_PATH") or "classifier.onnx"  # the file that convert_to_onnx.py wrote
EXECUTION_PROVIDER = choice("EXECUTION_PROVIDER", "auto", ("auto", *OPENERS))  # auto, cuda, openvino or cpu
PRECISION = choice("PRECISION", "auto", ("auto", "f32"))  # auto: bfloat16 or TF32 where the hardware has it; f32: exact
THREADS = integer("THREADS", available_cpus(), 1, 1024)  # of the model; by default what the container may use
MAX_IMAGES = integer("MAX_IMAGES", 16, 1, 1024)  # pictures in one call
MAX_PIXELS = integer("MAX_PIXELS", 25_000_000, 1, 1_000_000_000)  # width x height of one picture
# ------------------------------------------------------------------------------------------------------------------

VERSION = "1.0.0"  # of this server
# While each thread has a picture in the model, others are decoded, read from JSON or answered.
MORE_WORKERS = 3
WORKERS = THREADS + MORE_WORKERS  # calls to work on at a time
DEFAULT_TOP_K = 5

classifier: OnnxClassifier | None = None


class InvalidInput(ValueError):
    """The caller sent something that cannot be classified; the message says what to do about it."""


@dataclass(frozen=True)
class Outcome:
    """The answer to a call, and what its pictures were, such as `JPEG 500x375`."""

    answer: dict
    pictures: list[str]


@dataclass(frozen=True)
class Inputs:
    """A call's inputs, checked."""

    pictures: list[bytes | np.ndarray]
    several: bool  # the caller sent a list, and gets one
    top_k: int
    probabilities: bool  # whether the whole array is wanted


def init() -> None:
    """Load the model of MODEL_PATH and let it answer once. Raises model.InvalidModel."""
    global classifier
    classifier = OnnxClassifier(MODEL_PATH, EXECUTION_PROVIDER, PRECISION, THREADS, MAX_PIXELS)
    warm_up()


def warm_up() -> None:
    """Let the model answer an empty picture. Raises what ONNX Runtime raises where it cannot."""
    height, width = classifier.preprocessor.size
    classifier.predict(np.zeros((1, height, width, 3), np.uint8))


def inference(model_inputs: dict) -> dict:
    """Classify the picture of `image`, or the pictures of `images`: base64 text, the file's own bytes, or pixels.

    `top_k` (default 5) says how many classes to name, `probabilities` whether to return the whole array too.
    Raises InvalidInput.
    """
    return classify(model_inputs).answer


def classify(model_inputs: dict, alone: bool = True) -> Outcome:
    """Do what `inference` does, and return what the pictures were beside the answer. Raises InvalidInput.

    `alone` says that no other call is in work or waiting.
    """
    started = perf_counter()
    inputs = _check(model_inputs)
    threads = THREADS if alone else 1
    pictures = [_prepare(picture, n, inputs, threads) for n, picture in enumerate(inputs.pictures)]
    resized = [picture.pixels for picture in pictures]
    pixels = resized[0][None] if len(resized) == 1 else np.stack(resized)  # one is not worth a copy
    decoded = perf_counter()
    probabilities = classifier.predict(pixels, alone)
    ran = perf_counter()
    answers = [_answer(row, inputs) for row in probabilities]
    timing = {"decode": decoded - started, "model": ran - decoded, "total": perf_counter() - started}
    answer = {"results": answers} if inputs.several else answers[0]
    answer["timing_ms"] = {name: round(seconds * 1e3, 3) for name, seconds in timing.items()}
    return Outcome(answer, [f"{picture.format} {picture.width}x{picture.height}" for picture in pictures])


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


def _check(model_inputs: dict) -> Inputs:
    if not isinstance(model_inputs, dict):
        raise InvalidInput('expected a JSON object such as {"image": "<base64>"}')
    several = "images" in model_inputs
    if several == ("image" in model_inputs):
        raise InvalidInput('expected one of "image", the picture in base64, and "images", a list of such')
    pictures = model_inputs["images"] if several else [model_inputs["image"]]
    if not isinstance(pictures, list) or not 1 <= len(pictures) <= MAX_IMAGES:
        raise InvalidInput(f'"images" has to be a list of 1 to {MAX_IMAGES} pictures')
    top_k = model_inputs.get("top_k", DEFAULT_TOP_K)
    if type(top_k) is not int or top_k < 1:
        raise InvalidInput('"top_k" has to be a whole number of at least 1')
    probabilities = model_inputs.get("probabilities", False)
    if type(probabilities) is not bool:
        raise InvalidInput('"probabilities" has to be true or false')
    return Inputs([_bytes(picture) for picture in pictures], several, top_k, probabilities)


def _bytes(picture: object) -> bytes | np.ndarray:
    if isinstance(picture, bytes | np.ndarray):
        return picture
    if not isinstance(picture, str):
        raise InvalidInput("a picture has to be base64 text")
    try:
        return decode_base64(picture)
    except InvalidBase64 as error:
        raise InvalidInput(str(error)) from error


def _prepare(picture: bytes | np.ndarray, position: int, inputs: Inputs, threads: int) -> Prepared:
    try:
        return classifier.preprocessor.prepare(picture, threads)
    except InvalidImage as error:
        raise InvalidInput(f"images[{position}]: {error}" if inputs.several else str(error)) from error


def _answer(probabilities: np.ndarray, inputs: Inputs) -> dict:
    predictions = [vars(prediction) for prediction in classifier.top(probabilities, inputs.top_k)]
    answer = predictions[0] | {"predictions": predictions}
    if inputs.probabilities:
        answer["probabilities"] = probabilities.tolist()
    return answer
