"""For comparison: server.py with PyTorch in eager mode as its backend, in place of app.py.

BENCH_MODEL=efficientnet-lite0 python -m benchmarks.pytorch_eager
"""

import os
import sys
from time import perf_counter

import torch

import server
from conversion import trained_model
from runtime.settings import available_cpus

WORKERS = available_cpus()
NAME = os.environ["BENCH_MODEL"]


def init() -> None:
    """Load the network and run it once."""
    global network, preprocessor, class_names
    torch.set_num_threads(1)  # measured faster for concurrent calls than all threads for one
    trained = trained_model.load(NAME)
    network, class_names = trained.network, trained.class_names
    preprocessor = trained.preprocessor
    warm_up()


def warm_up() -> None:
    """Run the network on a blank image."""
    with torch.inference_mode():
        network(torch.zeros(1, 3, *preprocessor.size))


def inference(model_inputs: dict) -> dict:
    """Return the most probable class."""
    started = perf_counter()
    pixels = preprocessor.normalize(preprocessor(model_inputs["image"])[None])
    decoded = perf_counter()
    with torch.inference_mode():
        probabilities = network(torch.from_numpy(pixels))[0]
    top = int(probabilities.argmax())
    ran = perf_counter()
    timing = {"decode": (decoded - started) * 1e3, "model": (ran - decoded) * 1e3, "total": (ran - started) * 1e3}
    answer = {"class_id": top, "class_name": class_names[top], "probability": float(probabilities[top])}
    return answer | {"timing_ms": timing}


def status() -> dict:
    """As in app.py."""
    return {"model": NAME, "execution_provider": "PyTorch eager", "gpu": False}


if __name__ == "__main__":
    this = sys.modules[__name__]
    server.main(this, server.load(this))
