"""Endpoints that do not respond as this server does, for what must cope with them."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RESULT = {"class_id": 7, "class_name": "cock", "probability": 0.5, "timing_ms": {"total": 1}}


@contextmanager
def fake_endpoint(
    status: int, body: bytes | dict = RESULT, *, hang=False, good=range(0), health: bytes | dict = b"", location=""
) -> Iterator[tuple[str, list[str]]]:
    """Run an endpoint that responds to every POST alike, or never; give its URL and the requested paths.

    A dict is sent as JSON. The requests whose numbers are in `good`, from 0, get RESULT. With a `location`, every other
    response is a redirect to it, also that of the health check.
    """
    requested: list[str] = []
    hold = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            requested.append(self.path)
            is_good = len(requested) - 1 in good
            if hang and not is_good:
                hold.wait()
            self.rfile.read(int(self.headers["Content-Length"]))
            self.respond(*(200, RESULT) if is_good else (status, body))

        def do_GET(self):
            self.respond(status if location else 200, health)

        def respond(self, code, content):
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            if location and code != 200:
                self.send_header("Location", location)
            self.end_headers()
            with suppress(ConnectionError):  # the client has what it wants
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    endpoint = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.daemon_threads = True
    thread = threading.Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{endpoint.server_port}", requested
    finally:
        hold.set()
        endpoint.shutdown()
        thread.join()
        endpoint.server_close()


@contextmanager
def raw_endpoint(chunks: Iterator[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Run an endpoint that sends the chunks to its first client, whatever is requested; give its URL and the request.

    It stops when the client disconnects, or after the last chunk.
    """
    received: list[bytes] = []

    def serve() -> None:
        with suppress(OSError), listener.accept()[0] as connection:
            received.append(connection.recv(65_536))
            for chunk in chunks:
                connection.sendall(chunk)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(5)  # a test that fails may keep the connection
            while connection.recv(65_536):  # a close with unread data would reset the connection
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
        finally:
            thread.join()
