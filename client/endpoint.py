"""The client of an endpoint, and a local server to use when no endpoint is given."""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import requests
import urllib3

from runtime.settings import ROOT

TIMEOUT_S = 60.0  # of a request, its retries included
CONNECT_TIMEOUT_S = 5  # includes the TLS handshake, to which a plain HTTP port never responds
BUSY = (400, 423, 502, 503)  # retried, as Banana's client does; Banana's hosts use 400 for a caller over its quota
RETRY_DELAY_S = 0.5
MAX_RESPONSE_BYTES = 1_000_000
MAX_MESSAGE = 200  # characters of an endpoint's message
NOT_AS_EXPECTED = (KeyError, TypeError, ValueError, RecursionError)  # of a response that is not this server's


class EndpointUnavailable(Exception):
    """The endpoint does not respond, or not as this server does."""


class RequestRejected(Exception):
    """The endpoint rejected the request as the caller's mistake; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"rejected with {status}: {message}")
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """The endpoint at `url`. Every method raises EndpointUnavailable if it gets no response within `timeout_s`."""

    url: str  # without a slash at the end
    api_key: str | None = None
    timeout_s: float = TIMEOUT_S

    def classify(self, image: bytes) -> dict:
        """Return `class_id`, `class_name`, `probability`, `request_ms` and `server_ms`. Raises RequestRejected."""
        headers = {"X-Banana-API-Key": self.api_key, "X-Banana-Request-ID": str(uuid.uuid4())}  # None: not sent
        inputs = {"image": base64.b64encode(image).decode()}
        started = time.perf_counter()
        result = self._send("POST", f"{self.url}/", _parse_result, json=inputs, headers=headers)
        return result | {"request_ms": (time.perf_counter() - started) * 1e3}

    def health(self) -> dict:
        """Return what /healthcheck reports. Raises RequestRejected."""
        return self._send("GET", f"{self.url}/healthcheck", dict)

    def _send(self, method: str, url: str, parse: Callable[[Any], dict], **arguments: Any) -> dict:
        """Send until the endpoint is not busy; return the JSON of a 200, parsed. Raises RequestRejected."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                response, text = _exchange_within(deadline - time.monotonic(), method, url, **arguments)
            except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:  # ValueError: not a URL
                late = isinstance(error, TimeoutError) or time.monotonic() >= deadline
                reason = f"no response within {self.timeout_s:g} s" if late else f"no response: {_cause(error)}"
                if url.lower().startswith("https:"):
                    reason += "; if it serves plain HTTP, use a URL that begins with http://"
                raise EndpointUnavailable(f"{url}: {reason}") from error
            if response.status_code not in BUSY or time.monotonic() + RETRY_DELAY_S > deadline:
                break
            time.sleep(RETRY_DELAY_S)
        status = response.status_code
        if status == 200:
            with suppress(*NOT_AS_EXPECTED):
                return parse(json.loads(text))
            raise EndpointUnavailable(f"{url} responds, but not as this server does: {text[:MAX_MESSAGE]!r}")
        if response.is_redirect:  # not followed: its target would get the key
            target = response.headers["Location"][:MAX_MESSAGE]
            raise EndpointUnavailable(f"{url} redirects to {target!r}: if that is the endpoint, set the URL to it")
        message = text or response.reason
        with suppress(*NOT_AS_EXPECTED):
            message = json.loads(text)["error"]["message"]
        message = str(message)[:MAX_MESSAGE]
        if 400 <= status < 500 and status not in BUSY:
            raise RequestRejected(status, message)
        raise EndpointUnavailable(f"{url} responds with {status}: {message}")


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Leave redirects alone: requests reads and decompresses the whole body of one, even if it does not follow."""


def _exchange(seconds: float, method: str, url: str, **arguments: Any) -> tuple[requests.Response, str]:
    """Send a request; return the response and its text, or a note in place of a compressed or long text."""
    arguments["headers"] = {"Accept-Encoding": "identity"} | arguments.get("headers", {})
    arguments |= {"timeout": (CONNECT_TIMEOUT_S, seconds), "stream": True}
    with _Session() as session, session.request(method, url, **arguments) as response:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            return response, "(a compressed response)"
        content = response.raw.read(MAX_RESPONSE_BYTES + 1, decode_content=False)
    return response, content.decode(errors="replace") if len(content) <= MAX_RESPONSE_BYTES else "(more than 1 MB)"


def _exchange_within(seconds: float, *arguments: Any, **named: Any) -> tuple[requests.Response, str]:
    """Run `_exchange` in a thread that is abandoned after `seconds`, with a TimeoutError."""
    # The timeout of a socket limits each read, not their sum: an endpoint that drips bytes never reaches it.
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(_exchange(seconds, *arguments, **named))
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result(seconds)


def _parse_result(response: Any) -> dict:
    """Return the result in a response, without `request_ms`. Raises one of NOT_AS_EXPECTED if it is invalid."""
    result = {key: response[key] for key in ("class_id", "class_name", "probability")}
    result["server_ms"] = response["timing_ms"]["total"]
    limits = {"class_id": 10**9, "probability": 1.001, "server_ms": 10**9}
    in_range = all(0 <= result[key] <= limit for key, limit in limits.items())  # NaN is not
    if not in_range or type(result["class_id"]) is not int or type(result["class_name"]) is not str:
        raise ValueError
    return result


def _cause(error: BaseException) -> str:
    """Return the innermost error as one clause; the outer errors are details of libraries."""
    while error.__context__:
        error = error.__context__
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:MAX_MESSAGE]


@contextmanager
def local_server(api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> Iterator[Endpoint]:
    """Run server.py on this machine while the context lasts. Its log is added to an EndpointUnavailable."""
    port = free_port()
    endpoint = Endpoint(f"http://127.0.0.1:{port}", api_key, timeout_s)
    environment = os.environ | {"HOST": "127.0.0.1", "PORT": str(port), "BANANA_API_KEY": api_key or ""}
    command = [sys.executable, str(ROOT / "server.py")]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            deadline = time.monotonic() + timeout_s
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(EndpointUnavailable):  # it is not listening yet
                    endpoint.health()
                    break
                time.sleep(0.02)
            else:
                state = "exited" if process.poll() is not None else f"is not healthy after {timeout_s:g} s"
                raise EndpointUnavailable(
                    f"server.py {state}; set BANANA_MODEL_URL or --url to use another endpoint. Its log:"
                )
            yield endpoint
        except EndpointUnavailable as error:
            log.seek(0)
            raise EndpointUnavailable(f"{error}\n{log.read().decode(errors='replace')}".rstrip()) from error
        finally:
            process.kill()


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
