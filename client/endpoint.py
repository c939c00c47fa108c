"""An endpoint as a caller sees it, by Banana's own client kept within a time-out; and a server started here."""

import base64
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urljoin

import requests
import urllib3

SERVER = Path(__file__).parent.parent / "server.py"
CONNECT_TIMEOUT_S = 5  # of connecting and of TLS, which a port without TLS would let wait for ever
BUSY = (400, 423, 502, 503)  # asked again; Banana's own use 400 for a caller over the quota
LONGEST_PAUSE_S = 1  # between one try and the next
POLL_S = 0.02
STOP_TIMEOUT_S = 30


class EndpointDown(Exception):
    """The endpoint does not answer, or not in this server's words."""


class EndpointBusy(EndpointDown):
    """The endpoint may answer if it is asked again."""


class Refused(Exception):
    """The endpoint refused the call as the caller's mistake; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"refused with {status}: {message}")
        self.status = status


@dataclass(frozen=True)
class Answer:
    """The most probable class, and the milliseconds that the call took, in all and in the server."""

    class_id: int
    class_name: str
    probability: float
    call_ms: float
    server_ms: float


class Endpoint:
    """Calls `url` with Banana's client. Every method raises EndpointDown where no answer comes within `timeout_s`."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.client = banana_client.Client(api_key or "", self.url, verbosity="")

    def classify(self, image: bytes) -> Answer:
        """Return the class of an image file's content. Raises Refused."""
        inputs = {"image": base64.b64encode(image).decode()}
        started = time.perf_counter()
        answer = self._call(inputs)
        call_ms = (time.perf_counter() - started) * 1e3
        try:
            class_id, class_name, probability = (answer[key] for key in ("class_id", "class_name", "probability"))
            server_ms = float(answer["timing_ms"]["total"])
            return Answer(int(class_id), str(class_name), float(probability), call_ms, server_ms)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EndpointDown(f"{self.url} answered, but not with a class: is it this server?") from error

    def health(self) -> dict:
        """Return what /healthcheck says."""
        self._start_clock()
        try:
            health = _request("GET", f"{self.url}/healthcheck").json()
        except requests.JSONDecodeError:
            health = None
        if not isinstance(health, dict):
            raise EndpointDown(f"{self.url}/healthcheck answered, but not with a state: is it this server?")
        return health

    def _call(self, inputs: dict) -> Any:
        self._start_clock()
        pause_s = 0.2
        while True:
            try:
                # Headers of its own, because the client's default is one dictionary that all calls share and change.
                return self.client.call("/", json=inputs, headers={}, retry=False)[0]
            except EndpointBusy:
                if time.monotonic() + pause_s > clock.deadline:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _start_clock(self) -> None:
        clock.timeout_s = self.timeout_s
        clock.deadline = time.monotonic() + self.timeout_s


clock = threading.local()  # of the call that this thread makes: the client has no option for a time-out


def _request(method: str, url: str, **arguments: Any) -> requests.Response:
    """Send a request and return the response. Raises EndpointDown, for a redirect too: its target would get the key."""
    timeout: Any = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, total=max(0.001, clock.deadline - time.monotonic()))
    try:
        response = requests.request(method, url, timeout=timeout, allow_redirects=False, **arguments)
        target = urljoin(url, response.headers.get("Location", ""))
    except (requests.RequestException, ValueError) as error:  # ValueError: the redirect's target is not a URL
        late = time.monotonic() >= clock.deadline
        message = f"did not answer within {clock.timeout_s:g} s" if late else f"does not answer: {error}"
        if url.lower().startswith("https:") and isinstance(error, requests.Timeout | requests.exceptions.SSLError):
            message += "; if it speaks plain HTTP, its URL begins with http://"
        raise EndpointDown(f"{url} {message}") from error
    if response.is_redirect:
        raise EndpointDown(f"{url} redirects to {target!r}: if that is the endpoint, set the URL to it")
    return response


def _post(url: str, **arguments: Any) -> requests.Response:
    """Return the response if its status is 200. Raises EndpointBusy, Refused or EndpointDown, in the server's words."""
    response = _request("POST", url, **arguments)
    status = response.status_code
    if status == 200:
        return response
    try:
        message = response.json()["error"]["message"]
    except (requests.JSONDecodeError, KeyError, TypeError):
        message = response.text[:200] or response.reason
    if status in BUSY:
        raise EndpointBusy(f"{url} answers {status}: {message}")
    if 401 <= status < 500:
        raise Refused(status, message)
    raise EndpointDown(f"{url} answers {status}: {message}")


# By itself the client follows redirects, waits without an end, and drops most of what a server says. So a copy of its
# module sends by `_post`; whoever else imports that has it as it is.
_spec: Any = importlib.util.find_spec("banana_dev.client")
banana_client = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(banana_client)
banana_client.requests = SimpleNamespace(post=_post)  # type: ignore[attr-defined]


@contextmanager
def local_server(timeout_s: float, api_key: str | None = None) -> Iterator[str]:
    """Run server.py on a free port of this machine while the context lasts; give its URL. Raises EndpointDown."""
    port = free_port()
    environment = os.environ | {"HOST": "127.0.0.1", "PORT": str(port), "BANANA_API_KEY": api_key or ""}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, SERVER], env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(process, url, timeout_s)
            yield url
        except EndpointDown as error:
            log.seek(0)
            raise EndpointDown(f"{error}\n{log.read().decode(errors='replace')}".rstrip()) from error
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def _wait_until_healthy(process: subprocess.Popen, url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EndpointDown(f"server.py ended with exit code {process.returncode}; it said:")
        with suppress(requests.RequestException):  # it does not listen yet
            if requests.get(f"{url}/healthcheck", timeout=1).ok:
                return
        time.sleep(POLL_S)
    raise EndpointDown(f"server.py was not healthy within {timeout_s:g} s; it said:")
