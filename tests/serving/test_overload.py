"""Overload: the server responds 503 in time, finishes what it accepted, and recovers."""

import base64
import re
import signal
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
from banana_dev import Client
from banana_dev.client import ClientException

from serving.calls import BODIES_IN_MEMORY
from tests.clients import IMAGE, begin_call, flooding, status_of
from tests.server_process import Served, is_ready, ready, wait_until

RESIDENT = "process_resident_memory_bytes"  # on Linux only
TENCH = {"image": base64.b64encode(IMAGE).decode()}


def classify(served: Served, image: bytes = b"x") -> int:
    """Return the status of a request on a new connection."""
    return served.post(data=image, headers={"Content-Type": "image/jpeg"}).status_code


def gauges(served: Served) -> tuple[float, float]:
    """Return the numbers of requests that are running and waiting."""
    return served.metric("classifier_requests_in_progress"), served.metric("classifier_requests_queued")


def is_closed(connection: socket.socket, send: bytes = b"") -> bool:
    """Send a little more, and return whether the server has closed the connection; responses are skipped."""
    connection.setblocking(False)
    try:
        if send:
            connection.send(send)
        if connection.recv(65_536):
            return False
    except BlockingIOError:
        return False
    except (ConnectionResetError, BrokenPipeError):
        pass
    connection.close()
    return True


def test_overload_is_503_and_costs_no_memory(tmp_path):
    with ready(tmp_path, MAX_QUEUE="16") as served:

        def flood(calls: int) -> None:
            with flooding(served, clients=64) as flood:
                while flood.statuses.total() < calls and not flood.faults:
                    assert served.get("/healthcheck").status_code == 200
                    assert served.get("/metrics").status_code == 200
            assert not flood.faults
            assert flood.statuses[200] and flood.statuses[503]

        flood(300)  # what a first flood costs is not a leak
        before = served.metric(RESIDENT)
        flood(1000)
        assert served.metric(RESIDENT) < before + 50e6
        assert gauges(served) == (0, 0)
        assert classify(served, IMAGE) == 200


@pytest.mark.parametrize("size", [1, 5_000_000], ids=["small", "large"])
def test_a_disconnected_client_frees_its_place_in_the_queue(tmp_path, size):
    # Sanic pauses reading a large body, and would then not notice that the client disconnects.
    with ready(tmp_path, stub=True, MAX_QUEUE="2") as served:
        calls = [begin_call(served, b"x")]
        wait_until(lambda: gauges(served) == (1, 0), "a request is running")
        calls += [begin_call(served, b"x" * size) for _ in range(2)]
        wait_until(lambda: gauges(served) == (1, 2), "two requests wait")
        assert classify(served) == 503
        calls.pop().close()
        wait_until(lambda: gauges(served) == (1, 1), "one of them has gone")
        calls.append(begin_call(served, b"x"))
        wait_until(lambda: gauges(served) == (1, 2), "another has its place")
        (tmp_path / "release").touch()
        assert [status_of(call) for call in calls] == [200, 200, 200]
        wait_until(lambda: gauges(served) == (0, 0), "nothing is left")
        assert served.metric('classifier_requests_total{status="499"}') == 1
        assert served.metric('classifier_requests_total{status="500"}') == 0


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with short timeouts that responds at once."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "release").touch()
    with ready(folder, stub=True, REQUEST_TIMEOUT_S="1", RESPONSE_TIMEOUT_S="2", KEEP_ALIVE_TIMEOUT_S="1") as served:
        yield served


def test_drops_200_slow_connections(slow):
    kinds = [  # what each sends at first, and repeatedly afterwards
        (b"GET /healthcheck HTTP/1.1\r\nX-Slow: ", b"x"),
        (b"POST / HTTP/1.1\r\nContent-Type: image/jpeg\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"GET /healthcheck HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        (b"GET /healthcheck HTTP/1.1\r\nUpgrade: websocket\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        (b"POST /nowhere HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        (b"GET /healthcheck HTTP/1.1\r\n\r\n", b""),
        (b"", b""),
    ]
    left = [(slow.connect(), *kind) for _ in range(25) for kind in kinds]
    for connection, start, _ in left:
        connection.sendall(start)
    assert is_ready(slow)
    assert classify(slow) == 200

    def dropped() -> bool:
        left[:] = [(connection, start, more) for connection, start, more in left if not is_closed(connection, more)]
        return not left

    wait_until(dropped, "all of them are dropped, though most keep sending")
    assert classify(slow) == 200


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nX-Slow: ", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"])
def test_408_for_a_request_that_never_ends(slow, start):
    assert slow.raw(start).startswith(b"HTTP/1.1 408 ")


def test_drops_a_client_that_reads_no_response(slow):
    deaf = slow.connect()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.setblocking(False)
    requests_at_once = b"GET /metrics HTTP/1.1\r\n\r\n" * 100

    def dropped() -> bool:
        assert is_ready(slow)
        try:
            deaf.send(requests_at_once)
        except BlockingIOError:
            pass  # nothing of it is read any more
        except (ConnectionResetError, BrokenPipeError):
            return True
        return False

    wait_until(dropped, "the server drops it")


def test_pipelining_connections_take_turns(slow):
    pipelining = {name: slow.connect() for name in "ab"}
    slow.process.send_signal(signal.SIGSTOP)  # so that all of it arrives at once
    for name, connection in pipelining.items():
        connection.sendall(f"GET /a HTTP/1.1\r\nX-Banana-Request-ID: turn-{name}\r\n\r\n".encode() * 500)
    slow.process.send_signal(signal.SIGCONT)

    def turns() -> list[str]:
        return re.findall(r" id=turn-(\w) ", slow.log.read_text())

    wait_until(lambda: len(turns()) == 1000, "all are answered")
    assert sum(one != other for one, other in pairwise(turns())) > 500


TINY_CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nA\r\n" * 2_000


@pytest.mark.parametrize("key", [b"", b"X-Banana-API-Key: the key\r\n"], ids=["no key", "key"])
def test_drops_bodies_in_tiny_chunks(tmp_path, key):
    def is_dropped(connection: socket.socket) -> bool:
        return is_closed(connection, b"1\r\nA\r\n")

    with ready(tmp_path, stub=True, BANANA_API_KEY="the key") as served:
        (tmp_path / "release").touch()
        left = []
        for line in (b"POST /", b"POST /nowhere", b"GET /healthcheck", b"PUT /", b"OPTIONS /", b"POST /_k/warmup"):
            left.append(served.connect())
            left[-1].sendall(line + b" HTTP/1.1\r\nContent-Type: image/jpeg\r\n" + key + TINY_CHUNKS)
        for connection in left:
            wait_until(lambda connection=connection: is_dropped(connection), "it is dropped")
        honest = iter([b"x" * 64] * 3_000)  # requests sends each as a chunk
        headers = {"Content-Type": "image/jpeg", "X-Banana-API-Key": "the key"}
        assert served.post(data=honest, headers=headers).status_code == 200


def test_bounds_and_releases_large_bodies(tmp_path):
    size, clients = 5_000_000, 40
    with ready(tmp_path, stub=True, MAX_BODY_MB="5", MAX_QUEUE="64") as served:
        (tmp_path / "release").touch()
        before = served.metric(RESIDENT)
        refused = 'classifier_requests_total{status="503"}'
        earlier = served.metric(refused)  # while the model was loaded
        calls = [begin_call(served, b"x" * (size - 100_000), size) for _ in range(clients)]
        wait_until(lambda: served.metric(refused) >= earlier + clients - BODIES_IN_MEMORY, "the others are refused")
        assert served.metric(RESIDENT) < before + 2 * BODIES_IN_MEMORY * size
        for call in calls:
            call.sendall(b"x" * 100_000)
        statuses = [status_of(call) for call in calls]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) <= BODIES_IN_MEMORY
        for _ in range(2 * BODIES_IN_MEMORY):  # if anything was still held, these would not fit
            assert classify(served, b"x" * size) == 200


def test_drops_a_body_that_is_not_needed(tmp_path):
    with ready(tmp_path, stub=True) as served:
        before = served.metric(RESIDENT)
        for method, path in (("GET", "/healthcheck"), ("POST", "/_k/warmup"), ("GET", "/metrics"), ("PUT", "/nowhere")):
            with served.connect() as connection:
                connection.sendall(f"{method} {path} HTTP/1.1\r\nContent-Length: 100000001\r\n\r\n".encode())
                for _ in range(100):
                    connection.sendall(b"x" * 1_000_000)
                assert served.metric(RESIDENT) < before + 50e6
                connection.sendall(b"x")
                assert status_of(connection) == (404 if path == "/nowhere" else 200)
        assert " error " not in served.log.read_text()  # Sanic would log one for a body that was not read


def test_banana_client_gets_through_overload_by_its_retries(tmp_path, monkeypatch):
    key = {"X-Banana-API-Key": "the key"}
    results: dict[str, object] = {}

    def call(name: str, key: str, inputs: dict) -> None:
        try:
            results[name] = Client(key, served.url, verbosity="").call("/", json=inputs, headers={})[0]["class_id"]
        except ClientException as error:
            results[name] = error

    def lines(name: str, status: int) -> int:
        return served.log.read_text().count(f"id={name} method=POST path=/ status={status}")

    # The request id, the same for all tries of a call, identifies the thread in the log.
    monkeypatch.setattr("banana_dev.client.uuid4", lambda: threading.current_thread().name)
    with ready(tmp_path, MAX_QUEUE="2", BANANA_API_KEY="the key") as served:
        callers = {f"good-{n}": ("the key", TENCH) for n in range(6)}
        callers |= {"bad-image": ("the key", {"image": "AAAA"}), "bad-key": ("another", TENCH)}
        threads = [threading.Thread(target=call, args=(name, *args), name=name) for name, args in callers.items()]
        with flooding(served, 16, **key) as flood:
            wait_until(lambda: flood.statuses[200] and flood.statuses[503], "the server is flooded")
            for thread in threads:
                thread.start()
            wait_until(lambda: "bad-key" in results, "the wrong key is refused at once")
            wait_until(lambda: any(lines(f"good-{n}", 503) for n in range(6)), "calls are refused")
        for thread in threads:
            thread.join()
        assert not flood.faults
        assert [results[f"good-{n}"] for n in range(6)] == [0] * 6
        assert all(lines(f"good-{n}", 200) == 1 for n in range(6))
        assert "422" in str(results["bad-image"]) and lines("bad-image", 422) == 1
        assert "send the API key" in str(results["bad-key"]) and lines("bad-key", 401) == 1
