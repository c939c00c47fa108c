"""Stands in for the repository's app.py, so that a test decides when a call ends and how.

`init` waits for the file `loaded` in $STUB_DIR; a call waits for `release` and answers what is in `answer.json`, if
that is there; {"fail": true} makes a call fail.
"""

import json
import os
import time
from pathlib import Path

FOLDER = Path(os.environ["STUB_DIR"])


class InvalidInput(ValueError):
    """As in app.py."""


def wait_for(name: str) -> None:
    """Return when the file `name` is there."""
    while not (FOLDER / name).exists():
        time.sleep(0.005)


def init() -> None:
    """Load, once the test says so."""
    wait_for("loaded")


def inference(model_inputs: dict) -> dict:
    """Answer, once the test says so."""
    if model_inputs.get("fail"):
        raise RuntimeError("a bug, with a secret in it")
    (FOLDER / f"began-{time.monotonic_ns()}").touch()
    wait_for("release")
    answer = FOLDER / "answer.json"
    return json.loads(answer.read_text()) if answer.exists() else {"class_id": 0}


def status() -> dict:
    """As in app.py."""
    return {"model": "stub", "execution_provider": "none", "gpu": False}
