"""How fast the server is on this machine, and how close to what the machine can do.

    make bench                                            # this server, PyTorch as its backend, and the limit
    make bench-peers                                      # also LitServe and FastAPI
    python -m benchmarks.bench --rounds 3 --seconds 5 [--peers] [--output table.md]

Every candidate is restarted in every round, the rounds interleave, and the table has medians. A measurement is repeated
if other programs, or the machine's host, took too much CPU time. The load is a closed loop over keep-alive connections:
one preset image of 500x375 (29 KB) as base64 JSON. The limit is a loop without a server: the same decoding, resizing
and inference, on one thread per CPU.
"""

import runtime.startup_errors  # reports an old Python, a missing package or Ctrl-C in one line

import argparse
import base64
import contextlib
import ctypes
import json
import os
import platform
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path

from client.endpoint import free_port
from client.labeled_images import presets
from model import OnnxClassifier
from runtime.settings import ROOT, available_cpus

MODEL_PATH = Path(os.environ.get("MODEL_PATH") or ROOT / "classifier.onnx").resolve()
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
CLIENTS = 16
START_TIMEOUT_S = 60
MAX_FOREIGN_CPU = 0.05  # share of CPU time; a measurement with more is repeated
TRIES = 3
PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h


@dataclass
class Candidate:
    """A server to measure, and its figures from each round."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)


def candidates(model: str, peers: bool) -> list[Candidate]:
    """Return the servers to measure; `model` is the name of a known model."""
    server = [sys.executable, "server.py"]
    found = [
        Candidate("this server", server),
        Candidate("this server, PRECISION=f32", server, {"PRECISION": "f32"}),
        Candidate("this server, EXECUTION_PROVIDER=cpu", server, {"EXECUTION_PROVIDER": "cpu"}),
        Candidate(
            "this server, PyTorch eager as its backend",
            [sys.executable, "-m", "benchmarks.pytorch_eager"],
            {"BENCH_MODEL": model},
        ),
    ]
    if peers:
        found.append(Candidate("LitServe, 2 workers", [str(PEERS_PYTHON), "benchmarks/peers/litserve_server.py"]))
        found.append(Candidate("FastAPI", [str(PEERS_PYTHON), "benchmarks/peers/fastapi_server.py"]))
    return found


def request(port: int, body: bytes) -> bytes:
    """Return the bytes of the HTTP request."""
    head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def read_response(connection: socket.socket) -> None:
    """Read a whole response. Raises RuntimeError unless its status is 200."""
    response = b""
    while b"\r\n\r\n" not in response:
        received = connection.recv(65536)
        if not received:
            raise RuntimeError("the server closed the connection")
        response += received
    head, _, rest = response.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(response.decode(errors="replace"))
    missing = int(re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)[1]) - len(rest)
    while missing > 0:
        missing -= len(connection.recv(65536))


def load(port: int, message: bytes, clients: int, seconds: float) -> list[float]:
    """Return how long each request took, in ms, from N clients that send requests for some seconds.

    All clients share one thread, because CPU time of the load is lost to the server.
    """
    times: list[float] = []
    began: dict[socket.socket, float] = {}
    end = time.perf_counter() + seconds

    def send(connection: socket.socket) -> None:
        began[connection] = time.perf_counter()
        connection.sendall(message)

    with contextlib.ExitStack() as closing, selectors.DefaultSelector() as selector:
        for _ in range(clients):
            connection = closing.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(message))  # to send without waiting
            selector.register(connection, selectors.EVENT_READ)
            send(connection)
        while began:
            for key, _ in selector.select():
                read_response(key.fileobj)
                times.append((time.perf_counter() - began.pop(key.fileobj)) * 1e3)
                if time.perf_counter() < end:
                    send(key.fileobj)
    return times


def wait_for_response(port: int, message: bytes) -> None:
    """Return once the server has responded to an image."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(message)
                return read_response(connection)
        except (OSError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def memory_mb(pid: int) -> float:
    """Return the proportional memory of a process and its descendants, in MB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(own[1]) / 1024 + sum(memory_mb(int(child)) for child in children)


def cpu_ticks() -> tuple[int, int, int]:
    """Return clock ticks since the machine started: in total, stolen by the host, and busy."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy = user + nice + system + irq + softirq
    return busy + idle + iowait + steal, steal, busy


def own_ticks() -> int:
    """Return the CPU time of this program and of the processes it has waited for, in ticks."""
    return round(sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK"))


def retry_if_noisy(measure_once: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the figures of the first run with little foreign CPU time, or of the last one, with a warning.

    `measure_once` must wait for the processes that it starts.
    """
    for attempt in range(TRIES):
        before, own_before = cpu_ticks(), own_ticks()
        figures = measure_once()
        passed, steal, busy = (now - then for now, then in zip(cpu_ticks(), before, strict=True))
        foreign = busy - (own_ticks() - own_before)
        if max(foreign, 0) + steal <= MAX_FOREIGN_CPU * passed:
            return figures
        again = "measured again" if attempt + 1 < TRIES else "kept, but unreliable"
        print(f"  noisy: {foreign / passed:.0%} foreign, {steal / passed:.0%} stolen; {again}", file=sys.stderr)
    return figures


def measure(candidate: Candidate, image: bytes, seconds: float) -> dict[str, float]:
    """Start a candidate, stop it, and return its figures."""
    figures = {}
    port = free_port()
    own = {"PORT": str(port), "HOST": "127.0.0.1", "MODEL_PATH": str(MODEL_PATH)}
    message = request(port, json.dumps({"image": base64.b64encode(image).decode()}).encode())
    began = time.perf_counter()
    process = subprocess.Popen(
        candidate.command,
        cwd=ROOT,
        env=os.environ | own | candidate.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_response(port, message)
        figures["start s"] = time.perf_counter() - began
        load(port, message, CLIENTS, 1)  # warms up
        alone = load(port, message, 1, seconds)
        figures["1 client p50 ms"] = statistics.median(alone)
        began = time.perf_counter()
        many = load(port, message, CLIENTS, seconds)
        figures["16 clients /s"] = len(many) / (time.perf_counter() - began)
        figures["p99 ms"] = statistics.quantiles(many, n=100)[98]
        figures["MB"] = memory_mb(process.pid)
    finally:
        process.terminate()
        process.wait()
        stop_orphans(process.pid)
    return figures


def adopt_orphans() -> None:
    """Become the parent of processes whose own has ended, so that their CPU time is known once they end."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def stop_orphans(group: int) -> None:
    """Stop the worker processes that a candidate has left behind, and wait for them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def measure_limit(classifier: OnnxClassifier, image: bytes, seconds: float) -> dict[str, float]:
    """Return the speed of a loop without a server, HTTP or JSON."""
    began = time.perf_counter()
    counts = [0] * available_cpus()

    def classify_repeatedly(thread: int) -> None:
        while time.perf_counter() < began + seconds:
            classifier.predict(classifier.preprocessor(image)[None])
            counts[thread] += 1

    threads = [threading.Thread(target=classify_repeatedly, args=(n,)) for n in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"16 clients /s": sum(counts) / (time.perf_counter() - began)}


def table(measured: list[Candidate], limit: Candidate, model: str) -> str:
    """Return the table of all figures, in Markdown."""
    columns = ["16 clients /s", "p99 ms", "1 client p50 ms", "start s", "MB"]
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    lines = [
        f"{model}, {date.today()}, {available_cpus()} CPUs ({cpu[1] if cpu else platform.machine()}):\n",
        f"| | {' | '.join(columns)} | of the limit |",
        f"|---|{'---|' * (len(columns) + 1)}",
    ]
    for candidate in [*measured, limit]:
        medians = {name: statistics.median(values) for name, values in candidate.figures.items()}
        cells = [f"{medians[name]:.{2 if name == 'start s' else 1}f}" if name in medians else "" for name in columns]
        rounds = zip(candidate.figures["16 clients /s"], limit.figures["16 clients /s"], strict=True)
        of_limit = statistics.median(rate / most for rate, most in rounds)
        lines.append(f"| {candidate.name} | {' | '.join(cells)} | {of_limit:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure round by round, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="seconds of each load in each round; default: %(default)s"
    )
    parser.add_argument("--peers", action="store_true", help="also measure LitServe and FastAPI")
    parser.add_argument("--output", type=Path, help="file to write the table to, in addition")
    given = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("bench.py: CPU time and memory are read from /proc: run it on Linux")
    if given.peers and not PEERS_PYTHON.exists():
        sys.exit("bench.py: the peers are not installed: use `make bench-peers`")
    adopt_orphans()
    image = presets()[0].path.read_bytes()
    classifier = OnnxClassifier(MODEL_PATH, "auto", "auto")
    classifier.predict(classifier.preprocessor(image)[None])
    servers, limit = candidates(classifier.model_name, given.peers), Candidate("the limit: a loop without a server", [])
    order = [servers[0], limit, *servers[1:]]  # next to this server, because the machine's speed drifts
    for round_number in range(given.rounds):
        # Every second round is reversed, so that none always follows the same one.
        for candidate in order if round_number % 2 == 0 else reversed(order):
            print(f"round {round_number + 1} of {given.rounds}: {candidate.name}", file=sys.stderr)
            if candidate is limit:
                figures = retry_if_noisy(lambda: measure_limit(classifier, image, given.seconds))
            else:
                figures = retry_if_noisy(partial(measure, candidate, image, given.seconds))
            for figure, value in figures.items():
                candidate.figures.setdefault(figure, []).append(value)
    text = table(servers, limit, classifier.model_name)
    print(text)
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
