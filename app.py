"""Banana's contract: `init()` once at startup, then `inference()` for every request.

Banana was a serverless GPU platform; its servers called these two functions. They know nothing of HTTP: server.py
calls them, and so can any platform that works with plain dictionaries.
"""

from time import perf_counter

import numpy as np

from model import OnnxClassifier
from runtime.inputs import Inputs, LargeImageSlot, load_images, parse_inputs
from runtime.settings import ModelSettings, available_cpus, read

SETTINGS = read(ModelSettings)
VERSION = "1.0.0"  # of this server
THREADS = SETTINGS.THREADS or available_cpus()
EXTRA_WORKERS = 3  # these parse, decode and respond while each of the others runs the model
WORKERS = THREADS + EXTRA_WORKERS  # requests that are processed at a time

# One request decodes large images at a time; others wait, but two workers are left for small images.
large_images = LargeImageSlot(requests=WORKERS - 2)
classifier: OnnxClassifier | None = None


def init() -> None:
    """Load the model at MODEL_PATH and run it once, by default on the fastest backend that works here.

    That is CUDA, OpenVINO or ONNX Runtime on the CPU, in this order. Raises InvalidModel or BackendUnavailable.
    """
    global classifier
    classifier = OnnxClassifier(
        SETTINGS.MODEL_PATH, SETTINGS.EXECUTION_PROVIDER, SETTINGS.PRECISION, THREADS, SETTINGS.MAX_IMAGE_MB
    )
    warm_up()


def inference(model_inputs: dict) -> dict:
    """Classify the image in `image`, or each of those in `images`: base64 text, the file's bytes, or RGB pixels.

    `top_k` (default 5) sets how many classes are named; `probabilities` adds the whole array. Raises InvalidInput, or
    Unavailable if too many requests with large images are waiting.
    """
    started = perf_counter()
    inputs = parse_inputs(model_inputs, SETTINGS.MAX_IMAGES)
    pixels, descriptions = load_images(inputs, classifier.preprocessor, large_images)  # limits time and memory
    loaded = perf_counter()
    probabilities = classifier.predict(pixels)
    predicted = perf_counter()
    results = [result(image, row, inputs) for image, row in zip(descriptions, probabilities, strict=True)]
    timing = {"decode": loaded - started, "model": predicted - loaded, "total": perf_counter() - started}
    response = {"results": results} if inputs.is_batch else results[0]
    return response | {"timing_ms": {name: round(seconds * 1e3, 3) for name, seconds in timing.items()}}


def result(image: dict, probabilities: np.ndarray, inputs: Inputs) -> dict:
    """Return the response's fields for one image: its best class, the `top_k` best, and the format and size sent.

    A new field must also be described in serving/openapi.json.
    """
    predictions = classifier.top(probabilities, inputs.top_k)
    fields = predictions[0] | {"predictions": predictions}
    if inputs.with_probabilities:
        fields["probabilities"] = probabilities.tolist()
    return fields | {"image": image}


def status() -> dict:
    """Return what runs here: the model and the digest of its weights, the backend in use, the server's version."""
    return {
        "model": classifier.model_name,
        "weights": classifier.weights_digest,
        "classes": len(classifier.class_names),
        "execution_provider": classifier.runner.provider,
        "precision": classifier.runner.precision,
        "gpu": classifier.runner.provider == "CUDAExecutionProvider",
        "version": VERSION,
    }


def warm_up() -> None:
    """Run the model on a blank image. Raises whatever the backend raises."""
    height, width = classifier.preprocessor.size
    classifier.predict(np.zeros((1, height, width, 3), np.uint8))
