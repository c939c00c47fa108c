"""FastAPI and uvicorn: a plain `def` handler, run by FastAPI in its thread pool.

    make bench-peers

Started by benchmarks/bench.py.
"""

import common
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
session = common.load()


class Inputs(BaseModel):
    """The body of a request."""

    image: str


@app.post("/")
def classify(inputs: Inputs) -> dict:
    """Return the most probable class."""
    return common.classify(session, inputs.image)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=common.PORT, log_level="warning")
