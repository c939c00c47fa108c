"""The client of an endpoint, and a local server to use when no endpoint is given."""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import requests

from client.report import print_line
from runtime.settings import ROOT

TIMEOUT_S = 60.0  # of a request, its retries included
CONNECT_S = 5  # to connect; includes the TLS handshake, to which a plain HTTP port never responds
BUSY = (400, 423, 502, 503)  # retried, as Banana's client does; Banana's hosts use 400 for a caller over its quota
RETRY_DELAY_S = 0.5
MAX_RESPONSE_BYTES = 1_000_000  # what follows is not read
MAX_MESSAGE = 200  # characters of an endpoint's message


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
    api_key: str | None = None  # None: not sent
    timeout_s: float = TIMEOUT_S

    def classify(self, image: bytes) -> dict:
        """Return `class_id`, `class_name`, `probability`, `request_ms` and `server_ms`. Raises RequestRejected."""
        inputs = {"image": base64.b64encode(image).decode()}
        started = time.perf_counter()
        result = self._send("POST", "/", _parse_result, json=inputs, headers={"X-Banana-API-Key": self.api_key})
        return result | {"request_ms": (time.perf_counter() - started) * 1e3}

    def health(self) -> dict:
        """Return what /healthcheck reports. Raises RequestRejected."""
        return self._send("GET", "/healthcheck", dict)

    def _send(self, method: str, path: str, parse: Callable[[Any], dict], **arguments: Any) -> dict:
        """Send until the endpoint is not busy; return the JSON of a 200, parsed. Raises RequestRejected."""
        url, deadline = f"{self.url}{path}", time.monotonic() + self.timeout_s
        response, text = self._exchange(deadline, method, url, **arguments)
        while response.status_code in BUSY and time.monotonic() + RETRY_DELAY_S < deadline:
            time.sleep(RETRY_DELAY_S)
            response, text = self._exchange(deadline, method, url, **arguments)
        status, message = response.status_code, text or response.reason
        with suppress(KeyError, TypeError, ValueError, RecursionError):  # not JSON, or not as this server does
            if status == 200:
                return parse(json.loads(text))
            message = str(json.loads(text)["error"]["message"])
        if 400 <= status < 500 and status not in BUSY:
            raise RequestRejected(status, message[:MAX_MESSAGE])
        if status == 200:
            message = f"not as this server does: {message}"
        elif response.is_redirect:  # not followed: its target would get the key
            message = f"set the URL to the redirect's target, if that is the endpoint: {response.headers['Location']}"
        raise EndpointUnavailable(f"{url} responds with {status}: {message[:MAX_MESSAGE]}")

    def _exchange(self, deadline: float, method: str, url: str, **arguments: Any) -> tuple[requests.Response, str]:
        """Send a request; return the response and the beginning of its text."""
        # In a thread that is abandoned at the deadline: the timeout of a socket limits each read, not their sum, so an
        # endpoint that drips bytes never reaches it. Not in an executor: Python waits for its threads at its end.
        exchange: Future = Future()
        Thread(target=_receive, args=(exchange, self.timeout_s, method, url), kwargs=arguments, daemon=True).start()
        try:
            return exchange.result(deadline - time.monotonic())
        except Exception as error:
            cause: BaseException = error
            while cause.__context__:  # the outer errors are details of libraries
                cause = cause.__context__
            detail = f"no response: {getattr(cause, 'strerror', None) or cause}"[:MAX_MESSAGE]
            reason = f"no response within {self.timeout_s:g} s" if isinstance(error, TimeoutError) else detail
            if url.lower().startswith("https:"):
                reason += "; if it serves plain HTTP, use a URL that begins with http://"
            raise EndpointUnavailable(f"{url}: {reason}") from error


def _receive(exchange: Future, timeout_s: float, method: str, url: str, **arguments: Any) -> None:
    """Send a request; set the result of `exchange`: the response and the beginning of its text, or the error."""
    try:
        with requests.Session() as session:
            session.headers["Accept-Encoding"] = "identity"
            # Even without following a redirect, requests would read and decompress its whole body.
            session.get_redirect_target = lambda resp: None  # type: ignore[method-assign]
            with session.request(method, url, stream=True, timeout=(CONNECT_S, timeout_s), **arguments) as response:
                content = response.raw.read(MAX_RESPONSE_BYTES, decode_content=False)
        exchange.set_result((response, content.decode(errors="replace")))
    except Exception as error:
        exchange.set_exception(error)


def _parse_result(response: Any) -> dict:
    """Return the result in a response, without `request_ms`. Raises KeyError, TypeError or ValueError if invalid."""
    class_id, class_name, probability = (response[key] for key in ("class_id", "class_name", "probability"))
    server_ms = response["timing_ms"]["total"]
    in_range = 0 <= class_id <= 10**9 and 0 <= probability <= 1.001 and 0 <= server_ms <= 10**9  # NaN is not
    if not in_range or type(class_id) is not int or type(class_name) is not str:
        raise ValueError
    return {"class_id": class_id, "class_name": class_name, "probability": probability, "server_ms": server_ms}


@contextmanager
def local_server(api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> Iterator[Endpoint]:
    """Run server.py on this machine while the context lasts; after an EndpointUnavailable, print its log."""
    port = free_port()
    endpoint = Endpoint(f"http://127.0.0.1:{port}", api_key, timeout_s)
    environment = os.environ | {"HOST": "127.0.0.1", "PORT": str(port), "BANANA_API_KEY": api_key or ""}
    command = [sys.executable, str(ROOT / "server.py")]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + timeout_s
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(EndpointUnavailable):  # it is not listening yet
                    endpoint.health()
                    break
                time.sleep(0.02)
            else:
                raise EndpointUnavailable("server.py does not start: set BANANA_MODEL_URL or --url to use another")
            yield endpoint
        except EndpointUnavailable:
            log.seek(0)
            for line in log.read().decode(errors="replace").splitlines():
                print_line(f"server.py: {line}", sys.stderr)
            raise
        finally:
            process.kill()


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
