"""An endpoint as a caller sees it: Banana's own client, guarded where it would hang or repeat itself, and a server
started here where there is no other.
"""

import base64
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urljoin

import banana_dev.client
import requests
from banana_dev import Client
from banana_dev.client import ClientException

SERVER = Path(__file__).parent.parent / "server.py"
CLIENT_BACKOFF_S = 4  # the client looks at its own time-out between retries only, which are up to 3 s apart
POLL_S = 0.02
STOP_TIMEOUT_S = 30


class EndpointDown(Exception):
    """The endpoint does not answer, or not in this server's words."""


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
        self.headers = {"X-Banana-API-Key": api_key} if api_key else {}
        self.timeout_s = timeout_s
        self.client = Client(api_key or "", self.url, verbosity="")

    def classify(self, picture: bytes) -> Answer:
        """Return the class of a picture's file content. Raises Refused."""
        inputs = {"image": base64.b64encode(picture).decode()}
        started = time.perf_counter()
        answer = self._call(inputs)
        call_ms = (time.perf_counter() - started) * 1e3
        try:
            server_ms = answer["timing_ms"]["total"]
            return Answer(answer["class_id"], answer["class_name"], answer["probability"], call_ms, server_ms)
        except (KeyError, TypeError) as error:
            raise EndpointDown(f"{self.url} answered, but not with a class: is it this server?") from error

    def health(self) -> dict:
        """Return what /healthcheck says."""
        try:
            health = _request("GET", f"{self.url}/healthcheck", timeout=self.timeout_s).json()
        except requests.JSONDecodeError:
            health = None
        if not isinstance(health, dict):
            raise EndpointDown(f"{self.url}/healthcheck answered, but not with a state: is it this server?")
        return health

    def _call(self, inputs: dict) -> dict:
        # The client sets no time-out, so that a server which accepts and then says nothing would hold it for ever.
        outcome: queue.Queue = queue.Queue()
        threading.Thread(target=self._call_client, args=(inputs, outcome), daemon=True).start()
        try:
            answer = outcome.get(timeout=self.timeout_s + CLIENT_BACKOFF_S)
        except queue.Empty:
            raise EndpointDown(f"{self.url} did not answer within {self.timeout_s:g} s") from None
        if isinstance(answer, ClientException):
            return self._ask_again(inputs, answer)
        if isinstance(answer, EndpointDown):
            raise answer
        return answer

    def _call_client(self, inputs: dict, outcome: queue.Queue) -> None:
        try:
            # Headers of its own, because the client's default is one dictionary that all calls share and change.
            outcome.put(self.client.call("/", json=inputs, headers={}, retry_timeout=self.timeout_s)[0])
        except (ClientException, EndpointDown) as error:
            outcome.put(error)

    def _ask_again(self, inputs: dict, raised: ClientException) -> dict:
        """Raise Refused or EndpointDown in the server's own words, which the client mostly drops; return an answer."""
        response = _request("POST", self.url, json=inputs, headers=self.headers, timeout=self.timeout_s)
        try:
            if response.ok:
                return response.json()
            message = response.json()["error"]["message"]
        except (requests.JSONDecodeError, KeyError, TypeError):
            message = response.text[:200] or raised.message.strip()
        if 401 <= response.status_code < 500:
            raise Refused(response.status_code, message) from raised
        raise EndpointDown(f"{self.url} answers {response.status_code}: {message}") from raised


def _request(method: str, url: str, **arguments) -> requests.Response:
    """Send a request and return the response. Raises EndpointDown, for a redirect too: its target would get the key."""
    try:
        response = requests.request(method, url, allow_redirects=False, **arguments)
        target = urljoin(url, response.headers.get("Location", ""))
    except (requests.RequestException, ValueError) as error:  # ValueError: the redirect's target is not a URL
        raise EndpointDown(f"{url} does not answer: {error}") from error
    if response.is_redirect:
        raise EndpointDown(f"{url} redirects to {target!r}: if that is the endpoint, set the URL to it")
    return response


# The client would follow redirects, and has no option against that.
banana_dev.client.requests = SimpleNamespace(post=partial(_request, "POST"))


@contextmanager
def local_server(timeout_s: float) -> Iterator[str]:
    """Run server.py on a free port of this machine while the context lasts; give its URL. Raises EndpointDown."""
    port = free_port()
    environment = os.environ | {"HOST": "127.0.0.1", "PORT": str(port)}
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
        try:
            if requests.get(f"{url}/healthcheck", timeout=timeout_s).ok:
                return
        except requests.ConnectionError:
            pass  # it does not listen yet
        time.sleep(POLL_S)
    raise EndpointDown(f"server.py was not healthy within {timeout_s:g} s; it said:")
