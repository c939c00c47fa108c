"""Serve a stand-in for app.py, so that a test decides when a call ends and how: `python -m tests.stub`.

`init` waits for the file `loaded` in $STUB_DIR; a call waits for `release` and answers what is in `answer.json`, if
that is there. A picture of `fail` makes a call fail, and the file `broken` the model, at its start too.
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
    """As ONNX Runtime's errors, which are no RuntimeError."""


def wait_for(name: str) -> None:
    """Return when the file `name` is there."""
    while not (FOLDER / name).exists():
        time.sleep(0.005)


def init() -> None:
    """Load, once the test says so."""
    wait_for("loaded")
    warm_up()


def warm_up() -> None:
    """Answer the warm-up picture, unless the test has broken the model."""
    if (FOLDER / "broken").exists():
        raise ModelError("the model is broken")


def inference(model_inputs: dict) -> dict:
    """Answer, once the test says so."""
    if model_inputs.get("image") == b"fail":
        raise RuntimeError("a bug, with a secret in it")
    (FOLDER / f"began-{time.monotonic_ns()}").touch()
    wait_for("release")
    answer = FOLDER / "answer.json"
    answer = json.loads(answer.read_text()) if answer.exists() else {"class_id": 0}
    return answer | {"timing_ms": {"decode": 0, "model": 0, "total": 0}}


def status() -> dict:
    """As in app.py."""
    return {"model": "stub", "classes": 1, "execution_provider": "none", "gpu": False, "version": "stub"}


if __name__ == "__main__":
    this = sys.modules[__name__]
    server.main(this, server.load(this))
