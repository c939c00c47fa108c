"""What several tests of the server share."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection

import pytest

from tests.server_process import Served

ANSWER_S = 10  # for one answer: many times what any takes, so that only one that hangs fails
Ask = Callable[..., int]


@pytest.fixture(scope="module")
def ask(served: Served) -> Iterator[Ask]:
    """A function that posts a body and returns the status, having checked the answer; the server outlives it all."""
    with closing(HTTPConnection("127.0.0.1", served.port, timeout=ANSWER_S)) as connection:

        def ask(
            body: bytes, content_type: str | bytes = "image/x", path: str = "/", headers: dict | None = None
        ) -> int:
            connection.request("POST", path, body, (headers or {}) | {"Content-Type": content_type})
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status in (200, 413, 422), answer
            assert ("error" in answer) == (response.status != 200)
            return response.status

        yield ask
    assert served.process.poll() is None
    assert "Warning" not in served.log.read_text()
