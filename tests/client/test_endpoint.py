"""Endpoints that are unavailable, invalid or hostile: what test_server.py reports, and how it exits."""

import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from client import endpoint
from client.endpoint import Endpoint, EndpointUnavailable
from tests.fake_endpoint import RESULT, fake_endpoint, raw_endpoint
from tests.server_process import DEADLINE_S, NEWT, ROOT, TENCH, ready, wait_until
from tests.tester_process import run_tester, started


def sleeps(process):
    """Return whether its main thread sleeps. Python handles a signal that arrives just before only on waking."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].startswith("S")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_dying_server_ends_the_run_with_message_and_summary(tmp_path, options):
    with ready(tmp_path) as served, started(*[TENCH] * 1000, "--url", served.url, *options) as process:
        rows = [process.stdout.readline() for _ in range(2)]
        served.process.kill()
        output, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 3
    assert " tench " in rows[1] or json.loads(rows[1])["class_id"] == 0
    assert errors.count("no response") == 1
    assert output.count("no response") == len(options)  # as the last object
    classified, total = re.search(r"(\d+) of (\d+) images classified", errors if options else output).groups()
    assert 1 <= int(classified) < int(total) == 1000


def test_hanging_endpoint_ends_the_run_after_one_timeout():
    with fake_endpoint(200, b"", hang=True, good=range(2)) as (url, asked):
        result = run_tester(*[TENCH] * 100, "--url", url, "--timeout", "1", "--in-flight", "3")
    assert result.returncode == 3
    assert result.stderr.count("no response within 1 s") == 1
    assert " of 100 images classified in " in result.stdout
    assert "no response" not in result.stdout
    assert len(asked) <= 2 + 2 * 3


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ctrl_c_ends_the_run_at_once_with_a_summary(options):
    arguments = [*[TENCH] * 9, "--in-flight", "1"]
    with (
        fake_endpoint(200, b"", hang=True, good=range(2)) as (url, asked),
        started(*arguments, "--url", url, *options) as process,
    ):
        for _ in range(2 if options else 3):  # with the header
            assert process.stdout.readline()
        wait_until(lambda: len(asked) == 3 and sleeps(process), "it waits for the third response")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=DEADLINE_S / 2)  # half a request's timeout
    assert process.returncode == 130
    assert "test_server.py: interrupted" in errors
    assert "2 of 9 images classified" in (errors if options else output)
    assert "Traceback" not in errors


def test_wrong_key_exits_with_2_and_prints_no_key(tmp_path):
    with ready(tmp_path, BANANA_API_KEY="right-key") as served:
        for images in ([TENCH], [TENCH] * 9):
            result = run_tester(*images, "--url", served.url, "--api-key", "wrong-key")
            assert result.returncode == 2
            assert (result.stdout + result.stderr).count("rejected with 401") == 1
            assert "-key" not in result.stdout + result.stderr.replace("Banana-API-Key", "")
        assert run_tester(TENCH, "--url", served.url, BANANA_API_KEY="right-key").returncode == 0


def test_refused_connection_exits_with_3_and_one_clause():
    for arguments in ([TENCH], [TENCH, NEWT], ["--run-tests"]):
        result = run_tester(*arguments, "--url", "http://127.0.0.1:1")
        assert result.returncode == 3
        assert result.stderr.endswith("http://127.0.0.1:1/: no response: Connection refused\n")
        as_json = run_tester(*arguments, "--json", "--url", "http://127.0.0.1:1")
        assert "no response" in json.loads(as_json.stdout)["error"]


def test_https_on_a_plain_port_suggests_http(monkeypatch):
    monkeypatch.setattr(endpoint, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, fake_endpoint(200, b"") as (url, _):
        for address in (f"https://127.0.0.1:{silent.getsockname()[1]}", url.replace("http", "https")):
            with pytest.raises(EndpointUnavailable, match=r"no response: .*plain HTTP"):
                Endpoint(address, timeout_s=10).health()


def test_server_that_cannot_start_exits_with_3_and_its_log():
    result = run_tester(TENCH, "--timeout", "3600", MODEL_PATH="nowhere.onnx")
    assert result.returncode == 3
    assert "nowhere.onnx is not there" in result.stderr


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b"over quota", "responds with 400: over quota"),
        (503, b"", "responds with 503: Service Unavailable"),
        (500, b"broken", "responds with 500: broken"),
        (500, b'{"error": {"message": 5}}', "responds with 500: 5"),
        (200, b"<html>", "200: not as this server does: <html>"),
    ],
)
def test_endpoint_without_a_valid_response_exits_with_3(status, body, message):
    with fake_endpoint(status, body) as (url, asked):
        result = run_tester(TENCH, "--url", url, "--timeout", "1")
    assert result.returncode == 3
    assert message in result.stderr
    assert len(asked) == (2 if status in (400, 503) else 1)  # in 1 s, one of them after RETRY_DELAY_S


@pytest.mark.parametrize("status", [400, 423, 502, 503])
def test_retries_while_the_endpoint_is_busy(status):
    with fake_endpoint(status, b"busy", good=range(1, 2)) as (url, _):
        result = run_tester(TENCH, "--url", url)
    assert (result.returncode, result.stderr) == (0, "")
    assert "cock (class 7" in result.stdout


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_reported_and_not_followed(status):
    with socket.create_server(("127.0.0.1", 0)) as target:
        location = f"http://127.0.0.1:{target.getsockname()[1]}/"
        for good in (range(0), range(99)):  # with `range(99)` only the health check is redirected
            with fake_endpoint(status, b"", good=good, location=location) as (url, _):
                result = run_tester("--run-tests", "--url", url, "--api-key", "secret", "--timeout", "1")
            assert result.returncode == 3
            assert f"set the URL to the redirect's target, if that is the endpoint: {location}" in result.stderr
        target.setblocking(False)
        with pytest.raises(BlockingIOError):  # there was no connection
            target.accept()


@pytest.mark.parametrize("location", ["http://[", "\xff"])
def test_redirect_to_an_invalid_url_exits_with_3(location):
    with fake_endpoint(307, b"", location=location) as (url, _):
        assert run_tester(TENCH, "--url", url).returncode == 3


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def test_invalid_chunk_is_reported():
    with raw_endpoint(iter([CHUNKED + b"zz\r\n"])) as (url, _), pytest.raises(EndpointUnavailable, match="no response"):
        Endpoint(url).health()


def drip(head):
    yield head
    while True:
        yield b"1"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "head", [b"", OK, OK + b"Content-Length: 1000\r\n\r\n", CHUNKED], ids=["status", "headers", "body", "chunk size"]
)
def test_python_gives_a_dripping_endpoint_up_at_the_timeout(head):
    with raw_endpoint(drip(head)) as (url, _):
        code = f"from client.endpoint import Endpoint; Endpoint({url!r}, timeout_s=0.5).health()"
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert "no response within 0.5 s" in result.stderr


@pytest.mark.parametrize("status", [b"200 OK", b"302 Found\r\nLocation: /a", b"500 No"])
@pytest.mark.parametrize("framing", [b"", b"\r\nTransfer-Encoding: chunked"], ids=["until close", "chunked"])
def test_endless_response_is_read_up_to_a_limit(status, framing):
    sent = 0

    def flood():
        nonlocal sent
        yield b"HTTP/1.1 " + status + framing + b"\r\n\r\n"
        while True:
            yield b"10000\r\n" + bytes(0x10000) + b"\r\n"
            sent += 0x10000

    with raw_endpoint(flood()) as (url, _):
        result = run_tester(TENCH, "--url", url)
    assert result.returncode == 3
    assert sent < 50_000_000  # the limit, and the sockets' buffers


@pytest.mark.parametrize("status", [b"200 OK", b"302 Found\r\nLocation: /a", b"500 No"])
def test_compressed_response_is_not_decompressed(status):
    body = gzip.compress(bytes(100_000_000))  # begins with \x1f
    head = b"HTTP/1.1 %s\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    tracemalloc.start()
    try:
        shown = "this server does: \x1f|500: \x1f|redirect"
        with raw_endpoint(iter([head + body])) as (url, request), pytest.raises(EndpointUnavailable, match=shown):
            Endpoint(url).classify(b"image")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert b"\r\nAccept-Encoding: identity\r\n" in request[0]
    assert b"API-Key" not in request[0]


@pytest.mark.parametrize("charset", ["idna", "punycode", "utf-16", "nonsense"])
def test_charset_of_a_response_is_ignored(charset):
    body = b"\xff.." + b"a" * 100_000
    head = f"HTTP/1.1 500 No\r\nContent-Type: text/html; charset={charset}\r\nContent-Length: {len(body)}\r\n\r\n"
    shown = "responds with 500: \ufffd..a{197}$"
    with raw_endpoint(iter([head.encode() + body])) as (url, _), pytest.raises(EndpointUnavailable, match=shown):
        Endpoint(url).classify(b"image")


NAN = float("nan")
INVALID = {
    "class_id": [-1, 10**30, 7.0, "7", True],
    "class_name": [None],
    "probability": [NAN, float("inf"), -0.1, 2, "0.5", 10**400],
    "timing_ms": [{}, {"total": NAN}, {"total": 10**400}],
}


@pytest.mark.parametrize(
    "change", [{key: value} for key in INVALID for value in INVALID[key]], ids=lambda change: str(change)[:40]
)
def test_invalid_result_makes_the_endpoint_unavailable(change):
    with (
        fake_endpoint(200, RESULT | change) as (url, _),
        pytest.raises(EndpointUnavailable, match="not as this server does"),
    ):
        Endpoint(url).classify(b"image")


PATHOLOGICAL = [b"[" * 100_000, b"9" * 10_000, b'{"error": {"message": ' + b"[" * 100_000, b"[1]"]


@pytest.mark.parametrize("body", PATHOLOGICAL, ids=lambda body: body[:20].decode())
@pytest.mark.parametrize("status", [200, 500])
def test_pathological_json_is_reported(status, body):
    with fake_endpoint(status, body, health=body) as (url, _):
        for request in (lambda: Endpoint(url).classify(b"image"), Endpoint(url).health):
            with pytest.raises(EndpointUnavailable) as raised:
                request()
            assert len(str(raised.value)) < 500
