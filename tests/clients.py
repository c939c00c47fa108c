"""Difficult clients for the tests: many at once, and requests that are sent in part."""

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

from tests.server_process import DEADLINE_S, TENCH, Served

IMAGE = TENCH.read_bytes()


class Flood:
    """The results of clients in a closed loop."""

    def __init__(self) -> None:
        self.statuses: Counter = Counter()
        self.faults: list[str] = []  # anything but a 200 or a proper 503
        self.leaving = threading.Event()  # each client leaves at its next 503
        self.over = threading.Event()  # each client leaves after its current request

    def client(self, port: int, headers: dict[str, str]) -> None:
        """Send the next request as soon as there is a response."""
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)) as connection:
            while not self.over.is_set():
                leaving = self.leaving.is_set()
                try:
                    connection.request("POST", "/", IMAGE, headers)
                    response = connection.getresponse()
                    response.read()
                except (OSError, http.client.HTTPException) as error:
                    if not (leaving and isinstance(error, ConnectionRefusedError)):  # then no request was lost
                        self.faults.append(repr(error))
                    return
                self.statuses[response.status] += 1
                if response.status != 200 and (response.status, response.headers["Retry-After"]) != (503, "1"):
                    self.faults.append(f"{response.status} {response.headers}")
                if leaving and response.status == 503:
                    return


@contextmanager
def flooding(served: Served, clients: int, **headers: str) -> Iterator[Flood]:
    """Send requests from `clients` at once: half on one connection each, half on a new connection per request."""
    flood = Flood()
    headers = {"Content-Type": "image/jpeg"} | headers
    threads = [
        threading.Thread(target=flood.client, args=(served.port, headers | connection))
        for _ in range(clients // 2)
        for connection in ({}, {"Connection": "close"})
    ]
    for thread in threads:
        thread.start()
    try:
        yield flood
    finally:
        flood.over.set()
        for thread in threads:
            thread.join()


def begin_call(served: Served, body: bytes = b"", length: int | None = None) -> socket.socket:
    """Send a request without waiting for the response; with `length`, announce a longer body than is sent."""
    connection = served.connect()
    length = len(body) if length is None else length
    connection.sendall(b"POST / HTTP/1.1\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % length + body)
    return connection


def status_of(connection: socket.socket) -> int:
    """Wait for the response and return its status; 0 if the connection ends without one."""
    try:
        line = connection.recv(65_536).split(b" ", 2)
    except ConnectionResetError:
        return 0
    return int(line[1]) if line[0].startswith(b"HTTP/") else 0
