"""Clients that a server has to live with, for the tests beside this file: many at once, and calls half sent."""

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

from tests.server_process import DEADLINE_S, TENCH, Served

IMAGE = TENCH.read_bytes()


class Flood:
    """What clients in a closed loop have got."""

    def __init__(self) -> None:
        self.statuses: Counter = Counter()
        self.faults: list[str] = []  # anything that is no 200 and no proper 503
        self.leaving = threading.Event()  # from now on each client leaves at its next 503
        self.over = threading.Event()  # each leaves after the call that it is at

    def client(self, port: int, headers: dict[str, str]) -> None:
        """Call again as soon as there is an answer."""
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
    """Call with `clients` at once while the context lasts: half on one connection each, half on a new one a call."""
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
    """Send a call, or so much of it that `length` bytes of body are announced, and do not wait for the answer."""
    connection = served.connect()
    length = len(body) if length is None else length
    connection.sendall(b"POST / HTTP/1.1\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % length + body)
    return connection


def status_of(connection: socket.socket) -> int:
    """Return the status of the answer, waiting for it; 0 where the connection ends without one."""
    try:
        line = connection.recv(65_536).split(b" ", 2)
    except ConnectionResetError:
        return 0
    return int(line[1]) if line[0].startswith(b"HTTP/") else 0
