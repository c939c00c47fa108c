"""Serve a stub in place of app.py, so that a test controls when a request ends and how: `python -m tests.stub`.

`init` waits for the file `loaded` in $STUB_DIR; a request waits for `release` and returns the content of `answer.json`,
if that exists. The image `fail` makes a request fail, and the file `broken` the model.
"""

import json
import os
import sys
import time
from pathlib import Path

import server

WORKERS = 1
FOLDER = Path(os.environ["STUB_DIR"])


class ModelError(Exception):
    """Like ONNX Runtime's errors, which are not RuntimeErrors."""


def wait_for(name: str) -> None:
    """Return when the file `name` exists."""
    while not (FOLDER / name).exists():
        time.sleep(0.005)


def init() -> None:
    """Load once the test allows it."""
    wait_for("loaded")
    warm_up()


def warm_up() -> None:
    """Process the warm-up image, unless the test has broken the model."""
    if (FOLDER / "broken").exists():
        raise ModelError("the model is broken")


def inference(model_inputs: dict) -> dict:
    """Return a result once the test allows it."""
    if model_inputs.get("image") == b"fail":
        raise RuntimeError("a bug, with a secret in it")
    (FOLDER / f"began-{time.monotonic_ns()}").touch()
    wait_for("release")
    answer = FOLDER / "answer.json"
    answer = json.loads(answer.read_text()) if answer.exists() else {"class_id": 0}
    return answer | {"timing_ms": {"decode": 0, "model": 0, "total": 0}}


def status() -> dict:
    """See app.py."""
    return {"model": "stub", "classes": 1, "execution_provider": "none", "gpu": False, "version": "stub"}


if __name__ == "__main__":
    this = sys.modules[__name__]
    server.main(this, server.load(this))
