"""Fixtures of the server's tests."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import pytest
from playwright.sync_api import Browser, Page

from tests.browsing import CHROMIUM, NO_CHROMIUM, browsing
from tests.server_process import DEADLINE_S, Served, ready
from tests.serving.inferences import infer_route
from tests.serving.pages import KEY, Open

ANSWER_S = 10  # for one response: many times more than any needs, so that only a hang fails
Ask = Callable[..., int]


@pytest.fixture(scope="module")
def ask(served: Served) -> Iterator[Ask]:
    """A function that posts a body, checks the response and returns its status; the server must survive."""
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


@pytest.fixture(scope="session")
def route(served: Served) -> str:
    """The route for inferences with the server's model."""
    return infer_route(served)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for all these tests."""
    if not CHROMIUM:
        pytest.skip(NO_CHROMIUM)
    with browsing() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser) -> Open:
    """Open the server's page; fail if it then asks anyone else for anything, or if the console has an error.

    The browser's own line about an answer that is none of 200 is no error of the page's.
    """

    @contextmanager
    def opened(served: Served, **options) -> Iterator[Page]:
        errors: list[str] = []
        asked: set[str] = set()
        with browser.new_context(**options) as context:
            context.set_default_timeout(DEADLINE_S * 1000)
            context.on("request", lambda request: asked.add(request.url))
            page = context.new_page()
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(served.url)
            yield page
        assert [error for error in errors if not error.startswith("Failed to load resource")] == []
        assert served.url + "/" in asked
        assert [url for url in asked if not url.startswith((served.url + "/", f"blob:{served.url}/"))] == []

    return opened


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real server, with a key."""
    with ready(tmp_path_factory.mktemp("locked"), BANANA_API_KEY=KEY, MAX_BODY_MB="1") as served:
        yield served
