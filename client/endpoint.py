"""An endpoint as a caller sees it, and a server started on this machine."""

import base64
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import requests
import urllib3

from runtime.settings import ROOT

SERVER = ROOT / "server.py"
TIMEOUT_S = 60.0  # of a request, its retries included
CONNECT_TIMEOUT_S = 5  # includes TLS, for which a port without TLS never answers
BUSY = (400, 423, 502, 503)  # retried, as Banana's client does; Banana's hosts use 400 for a caller over its quota
RETRY_DELAY_S = 0.5


class EndpointUnavailable(Exception):
    """The endpoint does not respond, or not as this server does."""


class RequestRejected(Exception):
    """The endpoint rejected the request as the caller's mistake; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"rejected with {status}: {message}")
        self.status = status


class Endpoint:
    """The endpoint at `url`. Every method raises EndpointUnavailable if it gets no response within `timeout_s`."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self.api_key = api_key
        self.timeout_s = timeout_s

    def classify(self, image: bytes) -> dict:
        """Return the class of an image file's content. Raises RequestRejected.

        The keys are `class_id`, `class_name` and `probability`, and the milliseconds that the request took: `call_ms`
        in total, `server_ms` in the server.
        """
        headers = {"X-Banana-Request-ID": str(uuid.uuid4())}
        if self.api_key:
            headers["X-Banana-API-Key"] = self.api_key
        started = time.perf_counter()
        response = self._send("POST", f"{self.url}/", json={"image": base64.b64encode(image).decode()}, headers=headers)
        call_ms = (time.perf_counter() - started) * 1e3
        try:
            result = response.json()
            return {
                "class_id": int(result["class_id"]),
                "class_name": str(result["class_name"]),
                "probability": float(result["probability"]),
                "call_ms": call_ms,
                "server_ms": float(result["timing_ms"]["total"]),
            }
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EndpointUnavailable(f"{self.url} responds, but not with a class: is it this server?") from error

    def health(self) -> dict:
        """Return what /healthcheck reports. Raises RequestRejected."""
        url = f"{self.url}/healthcheck"
        try:
            return dict(self._send("GET", url).json())
        except (TypeError, ValueError) as error:
            raise EndpointUnavailable(f"{url} responds, but not with a state: is it this server?") from error

    def _send(self, method: str, url: str, **arguments: Any) -> requests.Response:
        """Send until the endpoint is not busy; return the response if its status is 200. Raises RequestRejected."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            timeout: Any = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, total=max(0.001, deadline - time.monotonic()))
            try:
                response = requests.request(method, url, timeout=timeout, allow_redirects=False, **arguments)
            except (OSError, ValueError) as error:  # ValueError: the target of a redirect is not a URL
                late = time.monotonic() >= deadline
                message = f"did not respond within {self.timeout_s:g} s" if late else f"does not respond: {error}"
                tls_failed = isinstance(error, requests.Timeout | requests.exceptions.SSLError)
                if tls_failed and url.lower().startswith("https:"):
                    message += "; if it serves plain HTTP, use a URL that begins with http://"
                raise EndpointUnavailable(f"{url} {message}") from error
            if response.status_code not in BUSY or time.monotonic() + RETRY_DELAY_S > deadline:
                break
            time.sleep(RETRY_DELAY_S)
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
        raise EndpointUnavailable(f"{url} responds with {status}: {message}")


@contextmanager
def local_server(api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> Iterator[Endpoint]:
    """Run server.py on a free port of this machine while the context lasts, from when it is healthy.

    An EndpointUnavailable that is raised here or in the context includes the server's log.
    """
    port = free_port()
    endpoint = Endpoint(f"http://127.0.0.1:{port}", api_key, timeout_s)
    environment = os.environ | {"HOST": "127.0.0.1", "PORT": str(port), "BANANA_API_KEY": api_key or ""}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([sys.executable, SERVER], env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            deadline = time.monotonic() + timeout_s
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(EndpointUnavailable):  # it is not listening yet
                    endpoint.health()
                    break
                time.sleep(0.02)
            else:
                state = "has ended" if process.poll() is not None else f"is not healthy after {timeout_s:g} s"
                raise EndpointUnavailable(f"server.py {state}; its log:")
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
