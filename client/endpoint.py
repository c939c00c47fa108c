"""An endpoint as a caller sees it, by Banana's own client kept within a time-out; and a server started here."""

import base64
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import requests
import urllib3

from runtime.settings import ROOT

SERVER = ROOT / "server.py"
TIMEOUT_S = 60.0  # of a call, its retries included
CONNECT_TIMEOUT_S = 5  # of connecting and of TLS, which a port without TLS would let wait for ever
BUSY = (400, 423, 502, 503)  # asked again; Banana's own use 400 for a caller over the quota
PAUSE_S = 0.5  # between one try and the next


class EndpointUnavailable(Exception):
    """The endpoint does not answer, or not in this server's words."""


class RequestRejected(Exception):
    """The endpoint refused the call as the caller's mistake; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"refused with {status}: {message}")
        self.status = status


class Endpoint:
    """Calls `url` with Banana's client. Raises EndpointUnavailable if there is no response within `timeout_s`."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        # By itself the client follows redirects, waits without an end, and drops most of what a server says. So a copy
        # of its module sends by `_send`; whoever else imports that module has it as it is.
        spec: Any = importlib.util.find_spec("banana_dev.client")
        banana: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(banana)
        banana.requests = SimpleNamespace(post=partial(self._send, "POST"))
        self.client = banana.Client(api_key or "", self.url, verbosity="")

    def classify(self, image: bytes) -> dict:
        """Return the class of an image file's content. Raises RequestRejected.

        It is `class_id`, `class_name` and `probability`, with the milliseconds that the call took: `call_ms` in all,
        and `server_ms` in the server.
        """
        inputs = {"image": base64.b64encode(image).decode()}
        started = time.perf_counter()
        # Headers of its own, because the client's default is one dictionary that all calls share and change.
        answer, _ = self.client.call("/", json=inputs, headers={}, retry=False)
        call_ms = (time.perf_counter() - started) * 1e3
        try:
            return {
                "class_id": int(answer["class_id"]),
                "class_name": str(answer["class_name"]),
                "probability": float(answer["probability"]),
                "call_ms": call_ms,
                "server_ms": float(answer["timing_ms"]["total"]),
            }
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EndpointUnavailable(f"{self.url} answered, but not with a class: is it this server?") from error

    def health(self) -> dict:
        """Return what /healthcheck says. Raises RequestRejected."""
        url = f"{self.url}/healthcheck"
        try:
            return dict(self._send("GET", url).json())
        except (TypeError, ValueError) as error:
            raise EndpointUnavailable(f"{url} answered, but not with a state: is it this server?") from error

    def _send(self, method: str, url: str, **arguments: Any) -> requests.Response:
        """Send until the endpoint is not busy, and return the response if its status is 200. Raises RequestRejected."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            timeout: Any = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, total=max(0.001, deadline - time.monotonic()))
            try:
                response = requests.request(method, url, timeout=timeout, allow_redirects=False, **arguments)
            except (OSError, ValueError) as error:  # ValueError: the target of a redirect is not a URL
                late = time.monotonic() >= deadline
                message = f"did not answer within {self.timeout_s:g} s" if late else f"does not answer: {error}"
                tls_failed = isinstance(error, requests.Timeout | requests.exceptions.SSLError)
                if tls_failed and url.lower().startswith("https:"):
                    message += "; if it speaks plain HTTP, its URL begins with http://"
                raise EndpointUnavailable(f"{url} {message}") from error
            if response.status_code not in BUSY or time.monotonic() + PAUSE_S > deadline:
                break
            time.sleep(PAUSE_S)
        status = response.status_code
        if status == 200:
            return response
        if response.is_redirect:  # not followed: its target would get the key
            target = response.headers["Location"]
            raise EndpointUnavailable(f"{url} redirects to {target!r}: if that is the endpoint, set the URL to it")
        try:
            message = response.json()["error"]["message"]
        except (KeyError, TypeError, ValueError):
            message = response.text[:200] or response.reason
        if 400 <= status < 500 and status not in BUSY:
            raise RequestRejected(status, message)
        raise EndpointUnavailable(f"{url} answers {status}: {message}")


@contextmanager
def local_server(api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> Iterator[Endpoint]:
    """Run server.py on a free port of this machine while the context lasts, from when it is healthy.

    An EndpointUnavailable, raised here or in the context, has what the server said at its end.
    """
    port = free_port()
    endpoint = Endpoint(f"http://127.0.0.1:{port}", api_key, timeout_s)
    environment = os.environ | {"HOST": "127.0.0.1", "PORT": str(port), "BANANA_API_KEY": api_key or ""}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([sys.executable, SERVER], env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            _wait_until_healthy(endpoint, process)
            yield endpoint
        except EndpointUnavailable as error:
            log.seek(0)
            raise EndpointUnavailable(f"{error}\n{log.read().decode(errors='replace')}".rstrip()) from error
        finally:
            process.kill()


def _wait_until_healthy(endpoint: Endpoint, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + endpoint.timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(EndpointUnavailable):  # it does not listen yet
            endpoint.health()
            return
        time.sleep(0.02)
    state = f"is not healthy after {endpoint.timeout_s:g} s" if process.poll() is None else "has ended"
    raise EndpointUnavailable(f"server.py {state}; it said:")


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
