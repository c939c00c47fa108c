"""Requests and responses for the tests of other platforms' routes."""

import numpy as np
import requests
from PIL import Image

from tests.server_process import NEWT, TENCH, Served

JPEG = {"Content-Type": "image/jpeg"}
IMAGES = [TENCH.read_bytes(), NEWT.read_bytes()]
PIXELS = [np.asarray(Image.open(path).convert("RGB")) for path in (TENCH, NEWT)]


def infer_route(served: Served) -> str:
    """Return the route for inferences with the server's model."""
    return f"/v2/models/{served.get('/healthcheck').json()['model']}/infer"


def tensor(**changes) -> dict:
    """Return the body of an inference of one small image, with changes to its input."""
    return {
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [1, 2, 3, 4, 5, 6]} | changes]
    }


def error_of(response: requests.Response, status: int) -> str:
    """Check an error response of v2 and return its message."""
    assert response.status_code == status, response.text
    assert (status == 503) == ("Retry-After" in response.headers)
    assert set(response.json()) == {"error"}
    assert isinstance(response.json()["error"], str)
    return response.json()["error"]
