"""A yardstick: app.py with PyTorch in eager mode where ONNX Runtime is.

    make bench

benchmarks/bench.py puts it behind server.py.
"""

import os
from time import perf_counter

import torch

import pytorch_model
from model import ImagePreprocessor, InvalidImage
from runtime.settings import available_cpus

WORKERS = available_cpus()
NAME = os.environ["BENCH_MODEL"]


class InvalidInput(ValueError):
    """As in app.py."""


class Outcome:
    """As in app.py."""

    def __init__(self, answer: dict) -> None:
        self.answer, self.pictures = answer, []


def init() -> None:
    """Load the network, and let it answer once."""
    global network, preprocessor, class_names
    torch.set_num_threads(1)  # a thread for each call in work was measured faster than all threads for one
    trained = pytorch_model.load(NAME)
    network, class_names = trained.classifier, trained.class_names
    preprocessor = ImagePreprocessor(trained.size, trained.mean, trained.std)
    warm_up()


def warm_up() -> None:
    """Let the network answer an empty picture."""
    with torch.inference_mode():
        network(torch.zeros(1, 3, *preprocessor.size))


def classify(model_inputs: dict, alone: bool = True) -> Outcome:
    """Return the most probable class."""
    started = perf_counter()
    try:
        pixels = preprocessor.normalize(preprocessor(model_inputs["image"])[None])
    except InvalidImage as error:
        raise InvalidInput(str(error)) from error
    decoded = perf_counter()
    with torch.inference_mode():
        probabilities = network(torch.from_numpy(pixels))[0]
    top = int(probabilities.argmax())
    ran = perf_counter()
    timing = {"decode": (decoded - started) * 1e3, "model": (ran - decoded) * 1e3, "total": (ran - started) * 1e3}
    answer = {"class_id": top, "class_name": class_names[top], "probability": float(probabilities[top])}
    return Outcome(answer | {"timing_ms": timing})


def status() -> dict:
    """As in app.py."""
    return {"model": NAME, "execution_provider": "PyTorch eager", "gpu": False}
