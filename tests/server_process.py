"""Run the real server.py in a process, on a real socket."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from client.endpoint import free_port

ROOT = Path(__file__).parent.parent
TENCH = ROOT / "images" / "n01440764_tench.jpeg"
NEWT = ROOT / "images" / "n01632777_axolotl.jpeg"
MODEL_PATH = ROOT / (os.environ.get("MODEL_PATH") or "classifier.onnx")
DEADLINE_S = 60  # fails a test that hangs; not a measurement


@dataclass
class Served:
    """A server process and where it listens."""

    process: subprocess.Popen
    port: int
    log: Path
    connections: list[socket.socket] = field(default_factory=list)  # closed with the server

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str = "/", **arguments) -> requests.Response:
        """POST with `requests`, on a new connection."""
        return requests.post(self.url + path, timeout=DEADLINE_S, **arguments)

    def get(self, path: str, **arguments) -> requests.Response:
        """GET with `requests`, on a new connection."""
        return requests.get(self.url + path, timeout=DEADLINE_S, **arguments)

    def metric(self, name: str, headers: dict | None = None) -> float:
        """Return a value of /metrics; 0 if there is none of that name."""
        lines = self.get("/metrics", headers=headers).text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def connect(self) -> socket.socket:
        """Return a connection on which the test controls every byte."""
        self.connections.append(socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S))
        return self.connections[-1]

    def raw(self, request: bytes) -> bytes:
        """Send the bytes on a new connection, and return everything received until the server closes it."""
        with self.connect() as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    def terminate(self) -> int:
        """Send SIGTERM, wait for the end, return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as `condition` holds; fail if it never does."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what}")
        time.sleep(0.01)


@contextmanager
def serving(
    folder: Path,
    *arguments: str,
    script: Sequence[str] = ("server.py",),
    stub: bool = False,
    port: int | None = None,
    **environment: str,
) -> Iterator[Served]:
    """Run `script` with `arguments` and `environment` while the context lasts, from the moment that it listens.

    With `stub` it is tests/stub.py in place of `script`, and $STUB_DIR is `folder`.
    """
    port = port or free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BANANA_")}
    environment = clean | {"HOST": "127.0.0.1", "PORT": str(port), "STUB_DIR": str(folder)} | environment
    command = [sys.executable, *(("-m", "tests.stub") if stub else script), *arguments]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    served = Served(process, port, log)
    try:
        wait_until(lambda: listens(served), "the server listens")
        yield served
    finally:
        process.kill()
        process.wait()
        for connection in served.connections:
            connection.close()


@contextmanager
def ready(folder: Path, *arguments: str, stub: bool = False, **options: Any) -> Iterator[Served]:
    """Do what `serving` does, from the moment that the model is loaded."""
    if stub:
        (folder / "loaded").touch()
    with serving(folder, *arguments, stub=stub, **options) as served:
        wait_until(lambda: is_ready(served), "the server is ready")
        yield served


def listens(served: Served) -> bool:
    """Return whether the server accepts connections; fail if it has exited."""
    assert served.process.poll() is None, served.log.read_text()
    try:
        served.get("/_k/status")
    except requests.ConnectionError:
        return False
    return True


def is_ready(served: Served) -> bool:
    """Return whether the server reports that it is healthy."""
    return served.get("/healthcheck").ok
