"""test_server.py as a command, against real servers and against endpoints that misbehave."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.serving import NEWT, ROOT, TENCH, is_ready, serving, wait_until


def run_tester(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BANANA_")}
    command = [sys.executable, ROOT / "test_server.py", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in result.stderr
    return result


@contextmanager
def misbehaving(status: int, body: bytes, hang: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Run an endpoint that answers every POST alike, or never; give its URL and the paths it was asked for."""
    asked: list[str] = []
    hold = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            if hang:
                hold.wait()
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    endpoint = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.daemon_threads = True
    thread = threading.Thread(target=endpoint.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{endpoint.server_port}", asked
    finally:
        hold.set()
        endpoint.shutdown()
        thread.join()
        endpoint.server_close()


def test_pictures_are_named_with_id_probability_and_time(served):
    result = run_tester(TENCH, NEWT, "--url", served.url)
    tench, newt = result.stdout.splitlines()
    assert tench.startswith(f"{TENCH}: tench (class 0, probability 0.")
    assert newt.startswith(f"{NEWT}: common newt (class 26, probability 0.")
    assert tench.endswith(" ms")
    assert result.returncode == 0


def test_json_is_an_object_a_picture(served):
    result = run_tester(TENCH, NEWT, "--json", BANANA_MODEL_URL=served.url)
    tench, newt = map(json.loads, result.stdout.splitlines())
    assert (tench["picture"], tench["class_id"], tench["class_name"]) == (str(TENCH), 0, "tench")
    assert newt["class_id"] == 26
    assert 0 < newt["server_ms"] < newt["call_ms"]


def test_without_a_url_a_server_is_started_for_as_long_as_needed():
    result = run_tester(TENCH)
    assert "tench (class 0" in result.stdout
    assert result.returncode == 0


def test_the_preset_tests_are_reported_each_with_the_time_of_a_call(served):
    result = run_tester("--run-tests", "--url", served.url)
    assert result.returncode == 0
    for line in ("health: ", "images/n01440764_tench.jpeg: 0 tench", "not a picture: refused with 422"):
        assert f"ok    {line}" in result.stdout
    assert "a call takes " in result.stdout
    assert "the first took " in result.stdout


def test_the_report_for_machines_has_the_same(served):
    report = json.loads(run_tester("--run-tests", "--json", "--url", served.url).stdout)
    assert (report["failed"], report["passed"]) == (0, len(report["tests"]))
    assert {test["name"] for test in report["tests"]} >= {"health", "not a picture", "images/n01632777_axolotl.jpeg"}
    times = report["timing_ms"]
    assert 0 < times["server_median"] <= times["median"] <= times["worst"]


def test_a_wrong_class_is_exit_code_1_with_expected_and_got(tmp_path):
    answer = {"class_id": 7, "class_name": "cock", "probability": 0.5, "timing_ms": {"total": 1}}
    with misbehaving(200, json.dumps(answer).encode()) as (url, _):
        result = run_tester("--run-tests", "--url", url)
    assert result.returncode == 3  # this endpoint has no health check to ask
    with serving(tmp_path, stub=True) as served:
        (tmp_path / "loaded").touch()
        (tmp_path / "release").touch()
        (tmp_path / "answer.json").write_text(json.dumps(answer))
        wait_until(lambda: is_ready(served), "the server is ready")
        result = run_tester("--run-tests", "--url", served.url)
    assert result.returncode == 1
    assert "FAIL  images/n01440764_tench.jpeg: expected 0 tench, got 7 cock" in result.stdout
    assert "FAIL  not a picture: expected status 422, got class 7 cock" in result.stdout


def test_a_bad_picture_is_exit_code_2_and_does_not_stop_the_rest(served, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    result = run_tester(text, tmp_path / "missing.jpg", TENCH, "--url", served.url)
    assert result.returncode == 2
    assert f"{text}: refused with 422: not a picture" in result.stderr
    assert "missing.jpg: cannot be read" in result.stderr
    assert "tench (class 0" in result.stdout


@pytest.mark.parametrize("arguments", [[], [TENCH, "--run-tests"], [TENCH, "--url", "example.com"], ["--unknown"]])
def test_wrong_usage_is_exit_code_2(arguments):
    result = run_tester(*arguments)
    assert result.returncode == 2
    assert "usage: test_server.py" in result.stderr


def test_a_wrong_key_is_exit_code_2_and_neither_key_is_printed(tmp_path):
    with serving(tmp_path, BANANA_API_KEY="right-key") as served:
        wait_until(lambda: is_ready(served), "the server is ready")
        wrong = run_tester(TENCH, "--url", served.url, "--api-key", "wrong-key")
        assert wrong.returncode == 2
        assert "refused with 401" in wrong.stderr
        assert "-key" not in wrong.stdout + wrong.stderr.replace("Banana-API-Key", "")
        assert run_tester(TENCH, "--url", served.url, BANANA_API_KEY="right-key").returncode == 0


def test_nothing_listening_is_exit_code_3():
    result = run_tester(TENCH, "--url", "http://127.0.0.1:1")
    assert result.returncode == 3
    assert "does not answer" in result.stderr


def test_a_server_that_cannot_start_is_exit_code_3_with_its_own_words():
    result = run_tester(TENCH, MODEL_PATH="nowhere.onnx")
    assert result.returncode == 3
    assert "nowhere.onnx is not there" in result.stderr


@pytest.mark.parametrize(
    ("status", "body", "hang", "says"),
    [
        (200, b"", True, "did not answer within 1 s"),
        (400, b"over quota", False, "over quota"),
        (503, b"busy", False, "busy"),
        (500, b"broken", False, "broken"),
        (200, b"<html>", False, "is it this server?"),
        (200, b"[1]", False, "is it this server?"),
    ],
    ids=["hangs", "400 for ever", "503 for ever", "500", "no JSON", "no class"],
)
def test_an_endpoint_that_never_answers_rightly_is_exit_code_3_in_bounded_time(status, body, hang, says):
    with misbehaving(status, body, hang) as (url, asked):
        result = run_tester(TENCH, "--url", url, "--timeout", "1")
    assert result.returncode == 3
    assert says in result.stderr
    assert asked
