"""protocol.py through real sockets: requests that Sanic would misread, or leave without a response."""

import base64
import json
import re
import socket

import pytest

from tests.server_process import TENCH, serving

TENCH_BASE64 = base64.b64encode(TENCH.read_bytes()).decode()


def test_malformed_http_is_never_a_400(served):
    for request in (b"GARBAGE\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"GET / HTTP/9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(request)
            assert connection.recv(100).startswith(b"HTTP/1.1 422 ")


def test_rejects_a_length_of_thousands_of_digits(served):
    for digits in (30, 5000):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * digits + b"\r\n\r\n")
            assert connection.recv(100)[:13] in (b"HTTP/1.1 413 ", b"HTTP/1.1 422 ")


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length : 2",
        "Content-Length\t: 2",
        "\u00e9: 1\r\nContent-Length: 2",
        "(: 1\r\nContent-Length: 2",
        ": 1\r\nContent-Length: 2",
        "Content-Length: \u0662",
        "Content-Length: 0x2",
        "Content-Length: ",
        *(f"Content-Length:{blank}2" for blank in "\n\v\f\x1c\u0085\u00a0\u3000"),
        "Content-Length: \u00a02",
        "Content-Length:2\u00a0",
    ],
)
def test_rejects_ambiguous_headers(served, headers):
    request = f"POST / HTTP/1.1\r\n{headers}\r\n\r\n".encode()
    answers = served.raw(request + b"{}GET /healthcheck HTTP/1.1\r\n\r\n")
    assert answers.startswith(b"HTTP/1.1 422 ")
    assert answers.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("size", ["0x2", "\u0662", "+2", "2_", "\u00a02", "", "-2"])
def test_rejects_ambiguous_chunk_size(served, size):
    request = f"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\n{{}}\r\n0\r\n\r\n".encode()
    answers = served.raw(request + b"GET /healthcheck HTTP/1.1\r\n\r\n")
    assert answers.startswith(b"HTTP/1.1 422 ")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_accepts_blanks_after_a_length(served):
    chunked = b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2 \t\r\n{}\r\n0\r\n\r\n"
    plain = b"POST /ping HTTP/1.1\r\nContent-Length: 2 \t\r\nConnection: close\r\n\r\n{}"
    assert re.findall(rb"HTTP/1.1 (\d+)", served.raw(chunked + plain)) == [b"405", b"405"]


@pytest.mark.parametrize("at_once", [True, False])
def test_skips_empty_lines_between_requests(served, at_once):
    body = json.dumps({"image": TENCH_BASE64}).encode()
    post = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    sent = [b"\r\n\r\n", post, b"\r\n", post, b"\r\n", b"\r\n", b"GET /ping HTTP/1.1\r\nConnection: close\r\n\r\n"]
    with served.connect() as connection:
        answers = b""
        for piece in [b"".join(sent)] if at_once else sent:
            connection.sendall(piece)
            if not at_once and piece == post:
                answers += connection.recv(65_536)
        answers += b"".join(iter(lambda: connection.recv(65_536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200", b"200"]


@pytest.mark.parametrize(
    ("request_line", "status"), [("POST /", 413), ("POST /nowhere", 404), ("PUT /", 405), ("POST /_k/status", 405)]
)
def test_refuses_expect_100_continue_without_the_body(served, request_line, status):
    head = f"{request_line} HTTP/1.1\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n".encode()
    with served.connect() as connection:
        connection.sendall(head)
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close\r\n" in answer


def test_sends_100_continue(served):
    with served.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 422 ")


def test_drops_the_body_of_options(tmp_path):
    with serving(tmp_path, stub=True) as served:
        closing = b"GET /ping HTTP/1.1\r\nConnection: close\r\n\r\n"
        answers = served.raw(b"OPTIONS / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}" + closing)
        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"204", b"204"]
        assert " error " not in served.log.read_text()


@pytest.mark.parametrize("end", ["\n\n", "xx", "\r\r", "\n\r", "  "])
def test_rejects_a_chunk_without_crlf(served, end):
    body = f"2\r\n{{}}{end}0\r\n\r\n"
    request = f"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /healthcheck HTTP/1.1\r\n\r\n"
    answers = served.raw(request.encode())
    assert answers.startswith(b"HTTP/1.1 422 ")
    assert answers.count(b"HTTP/1.1 ") == 1


CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"GET /ping HTTP/1.1\r\n\r\n", [b"200"]),
        (b"GET /ping HTTP/1.1\r\n\r\n" * 3, [b"200"] * 3),
        (CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(TENCH.read_bytes()), TENCH.read_bytes()), [b"200"]),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", [b"422"]),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n{}", []),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", []),
        (b"GET /ping HTTP/1.1\r\n", []),
        (b"", []),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_responds_after_a_half_close(served, request_bytes, statuses, at_once):
    with served.connect() as connection:
        for byte in [request_bytes] if at_once else [request_bytes[:10], request_bytes[10:]]:
            connection.sendall(byte)
        connection.shutdown(socket.SHUT_WR)
        answers = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == statuses
