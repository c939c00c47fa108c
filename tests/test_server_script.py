"""test_server.py as a command, with real servers: its output and its exit codes."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading

import pytest

import test_server
from client.labeled_images import presets
from tests.fake_endpoint import RESULT, fake_endpoint
from tests.imports import imports, needed
from tests.server_process import DEADLINE_S, NEWT, TENCH, ready
from tests.tester_process import command_line, run_tester, started

HEALTHY = {"state": "healthy"}


def cells(row):
    """Return the columns of a row, which at least two spaces separate."""
    return re.split("  +", row)


def test_one_image_prints_its_class_probability_and_time(served):
    result = run_tester(TENCH, "--url", served.url)
    assert result.stdout.startswith(f"{TENCH}: tench (class 0, probability 0.")
    assert re.search(rf" from {served.url} in \d+\.\d ms\n$", result.stdout)
    assert (result.returncode, result.stderr) == (0, "")


def test_many_images_print_a_table_in_order_and_a_summary(served):
    tench, newt = "images/n01440764_tench.jpeg", "images/n01632777_axolotl.jpeg"
    result = run_tester(*[tench, newt] * 10, "--url", served.url)
    lines = header, *rows, summary, latency = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert cells(header) == ["file", "class", "name", "probability", "ms"]
    assert [cells(row)[:-2] for row in rows] == [[tench, "0", "tench"], [newt, "26", "common newt"]] * 10
    assert all(row.rindex(" ") == rows[0].rindex(" ") or len(row) == len(rows[0]) for row in rows)
    assert summary.startswith(f"{served.url}: 20 of 20 images classified in ")
    assert latency.startswith("latency: median ")
    assert (result.returncode, result.stderr) == (0, "")


def test_folder_prints_a_table_and_its_ignored_files(served, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "tench.JPG").write_bytes(TENCH.read_bytes())
    (tmp_path / "notes.txt").touch()
    result = run_tester(tmp_path, "--url", served.url, "--in-flight", "1")
    assert f"{tmp_path / 'deep' / 'tench.JPG'}  " in result.stdout
    assert "1 of 1 images" in result.stdout
    assert f"ignored 1 files that are not images, such as {tmp_path / 'notes.txt'}" in result.stderr
    (tmp_path / "deep" / "tench.JPG").unlink()
    empty = run_tester(tmp_path, "--url", served.url)
    assert empty.returncode == 2
    assert f"no images found in {tmp_path}" in empty.stderr


def test_file_name_that_is_not_valid_utf8_is_escaped(served, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.jpg")
    path.symlink_to(TENCH)
    assert "\\udcff.jpg: tench" in run_tester(path, "--url", served.url).stdout
    assert json.loads(run_tester(path, "--json", "--url", served.url).stdout)["image"] == str(path)


def test_json_prints_an_object_per_image(served):
    result = run_tester(TENCH, NEWT, "--json", BANANA_MODEL_URL=served.url)
    tench, newt = map(json.loads, result.stdout.splitlines())
    assert (tench["image"], tench["class_id"], tench["class_name"]) == (str(TENCH), 0, "tench")
    assert newt["class_id"] == 26
    assert result.stderr.startswith(f"{served.url}: 2 of 2 images classified in ")
    assert 0 < newt["server_ms"] < newt["request_ms"]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [([TENCH], "tench (class 0"), ([TENCH, "--json"], '"class_id": 0'), (["--run-tests"], "0 tench")],
)
def test_without_a_url_a_server_is_started(arguments, shown):
    result = run_tester(*arguments, cwd="/", BANANA_MODEL_URL="", BANANA_API_KEY="key\n")
    assert result.returncode == 0
    assert shown in result.stdout
    assert "started on this machine" in result.stderr
    assert "http://127.0.0.1:" in result.stdout + result.stderr


def run_pytest(**environment):
    command = [sys.executable, "-m", "pytest", "test_server.py", "-vv", "-p", "no:cacheprovider"]
    options = command_line(**environment) | {"args": command}
    return subprocess.run(**options, capture_output=True, text=True, timeout=120)


def test_pytest_reports_a_failed_check_escaped():
    with fake_endpoint(200, RESULT | {"class_name": "\x1bcock"}, health=HEALTHY) as (url, _):
        result = run_pytest(BANANA_MODEL_URL=url)
    assert result.returncode == 1
    assert f"test_endpoint SUBFAILED[{presets()[0].name} of {url}]" in result.stdout
    assert "AssertionError: expected 0 tench, got 7 \\x1bcock" in result.stdout
    assert "2 subtests passed" in result.stdout


def test_pytest_reports_each_check_and_starts_one_server():
    result = run_pytest()
    assert result.returncode == 0, result.stdout
    assert "started on this machine" in result.stderr
    passed = re.findall(r"test_endpoint SUBPASSED\[(.+) of (http://127\.0\.0\.1:\d+)\]", result.stdout)
    names, urls = zip(*passed, strict=True)
    assert set(names) >= {"health", *(image.name for image in presets()), "not an image"}
    assert len(set(urls)) == 1


def test_text_from_an_endpoint_is_escaped_and_cut():
    result_with_commands = RESULT | {"class_name": "\n::error::cock\x1b[2J" + "a" * 100_000}
    with fake_endpoint(200, result_with_commands, health=HEALTHY | {"model": "\n::error::a"}) as (url, _):
        for arguments in ([TENCH], [TENCH, NEWT], ["--run-tests"]):
            result = run_tester(*arguments, "--url", url)
            assert "\\n::error::cock\\x1b[2J" + "a" * 150 in result.stdout
            assert "\n::" not in result.stdout
            assert "\x1b" not in result.stdout
            assert len(result.stdout) < 10_000
    for status in (422, 500):
        with fake_endpoint(status, {"error": {"message": "no\n::error::" + "a" * 100_000}}) as (url, _):
            errors = run_tester(TENCH, "--url", url).stderr
        assert errors.count(f"{status}: no\\n::error::" + "a" * 150) == 1
        assert len(errors) < 1000


def test_json_is_valid_and_has_no_commands():
    name = "a ##[error]b\x7f\u202e\x1b\n::error::c"
    with fake_endpoint(200, RESULT | {"class_name": name}, health=HEALTHY | {"a": "##[error]b"}) as (url, _):
        for arguments in ([TENCH], ["--run-tests"]):
            output = run_tester(*arguments, "--json", "--url", url).stdout
            assert "##[" not in output
            assert output.rstrip("\n").isprintable()
            assert json.loads(output).get("class_name", name) == name


def test_run_tests_reports_every_check_and_the_latency(served):
    result = run_tester("--run-tests", "--url", served.url)
    assert result.returncode == 0
    names = (f"{presets()[0].name}: 0 tench", "concurrent requests: 10 ", "not an image: rejected with 422")
    for line in ("health: ", *names):
        assert f"ok    {line}" in result.stdout
    assert "no API key" not in result.stdout
    assert "latency: median " in result.stdout
    assert ", first " in result.stdout
    assert f"{served.url}: 5 passed, 0 failed" in result.stdout
    report = json.loads(run_tester("--run-tests", "--json", "--url", served.url).stdout)
    times = report["timing_ms"]
    assert 0 < times["server_median"] <= times["median"] <= times["max"]


def test_request_without_the_key_must_be_rejected(tmp_path):
    with ready(tmp_path, BANANA_API_KEY="key") as served:
        result = run_tester("--run-tests", "--url", served.url, "--api-key", "key")
    assert result.returncode == 0, result.stdout
    assert "ok    no API key: rejected with 401" in result.stdout


def test_failed_check_exits_with_1_and_what_was_expected():
    with fake_endpoint(200, health={"state": "starting"}) as (url, _):
        result = run_tester("--run-tests", "--url", url, "--api-key", "key")
    assert result.returncode == 1
    assert "FAIL  health: expected state healthy, got {'state': 'starting'}" in result.stdout
    assert f"FAIL  {presets()[0].name}: expected 0 tench, got 7 cock" in result.stdout
    assert "FAIL  not an image: expected status 422, got class 7 cock" in result.stdout
    assert "FAIL  no API key: expected status 401, got class 7 cock" in result.stdout
    assert f"{url}: 1 passed, 5 failed" in result.stdout


def test_concurrent_requests_must_all_succeed():
    with fake_endpoint(413, b"busy", good=range(14), health=HEALTHY) as (url, _):
        result = run_tester("--run-tests", "--url", url)
    assert result.returncode == 1
    assert "FAIL  concurrent requests: 9 of 10 failed: rejected with 413: busy" in result.stdout
    assert "FAIL  not an image: expected status 422, got rejected with 413: busy" in result.stdout


def test_concurrent_requests_are_sent_at_once():
    all_sent = threading.Barrier(test_server.REQUESTS, timeout=DEADLINE_S)

    class Endpoint:
        def classify(self, image):
            all_sent.wait()
            return {"request_ms": 7.0}

    assert test_server.check_concurrency(presets()[0], Endpoint()) == "10 classified, max 7.0 ms"


def test_first_request_is_measured_apart():
    class Endpoint:
        results = iter([{"request_ms": 100.0 - n, "server_ms": float(n)} for n in range(1 + test_server.REQUESTS)])

        def classify(self, image):
            return next(self.results)

    expected = {"first": 100.0, "median": 94.5, "max": 99.0, "server_median": 5.5}
    assert test_server.measure_latency(Endpoint(), b"") == expected


def test_image_that_cannot_be_read_fails_its_test(served, tmp_path):
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(5 * 10**9)
    result = run_tester("--expect", f"{tmp_path / 'large.jpg'}=0", "--url", served.url)
    assert result.returncode == 1
    assert "large.jpg: larger than 50 MB" in result.stdout


def test_server_packages_are_needed_only_without_a_url(served, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules |= {'sanic': None, 'numpy': None}\n")
    assert run_tester(TENCH, "--url", served.url, PYTHONPATH=str(tmp_path)).returncode == 0
    result = run_tester(TENCH, PYTHONPATH=str(tmp_path))
    assert result.returncode == 3
    assert "set BANANA_MODEL_URL or --url" in result.stderr


def test_tester_imports_nothing_that_windows_lacks():
    unix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
    assert not {module for file in needed("test_server.py") for module in imports(file)} & unix


def test_rejected_image_exits_with_2_after_all_others(served, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not an image")
    missing = tmp_path / "missing.jpg"
    result = run_tester(text, missing, TENCH, "--url", served.url)
    assert result.returncode == 2
    _, of_text, of_missing, of_tench, summary, _ = result.stdout.splitlines()
    assert of_text.startswith(str(text))
    assert "  rejected with 422: " in of_text
    assert of_missing.startswith(str(missing))
    assert of_missing.endswith("  cannot be read: No such file or directory")
    assert cells(of_tench)[1:3] == ["0", "tench"]
    assert "1 of 3 images classified" in summary

    as_json = run_tester(text, missing, TENCH, "--json", "--url", served.url)
    assert as_json.returncode == 2
    of_text, of_missing, of_tench = map(json.loads, as_json.stdout.splitlines())
    assert of_text["error"].startswith("rejected with 422: ")
    assert of_missing == {"image": str(missing), "error": "cannot be read: No such file or directory"}
    assert of_tench["class_id"] == 0

    alone = run_tester(text, "--url", served.url)
    assert (alone.returncode, alone.stdout) == (2, "")
    assert f"{text}: rejected with 422: " in alone.stderr


def test_progress_bar_is_shown_only_on_a_terminal(served):
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (24, 80))
    command = command_line(*[TENCH] * 5, "--url", served.url)
    subprocess.run(**command, stdout=subprocess.PIPE, stderr=its_end, check=True, timeout=120)
    os.close(its_end)
    shown = b""
    with contextlib.suppress(OSError):  # raised when the other end of the terminal is closed and everything is read
        while True:
            shown += os.read(terminal, 65_536)
    os.close(terminal)
    assert b" 5/5 " in shown
    assert run_tester(*[TENCH] * 5, "--url", served.url).stderr == ""


def test_closed_output_ends_the_run_silently(served):
    with started(*[TENCH] * 300, "--url", served.url) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 130
        assert process.stderr.read() == ""


@pytest.mark.parametrize("other_model", ["5 classes with sigmoid"], indirect=True)
def test_expect_works_with_another_model(other_model, tmp_path):
    path, tench, newt = other_model
    (tmp_path / "a=b.jpeg").symlink_to(NEWT)
    with ready(tmp_path, MODEL_PATH=str(path)) as served:
        arguments = ["--expect", f"{TENCH}={tench}", "--expect", f"{tmp_path / 'a=b.jpeg'}={newt}"]
        report = json.loads(run_tester(*arguments, "--json", "--url", served.url).stdout)
        names = [test["name"] for test in report["tests"]]
        assert names[:3] == ["health", "images/n01440764_tench.jpeg", str(tmp_path / "a=b.jpeg")]
        assert (report["passed"], report["failed"]) == (5, 0), report
        wrong = run_tester("--run-tests", "--expect", f"{TENCH}={tench + 1}", "--url", served.url)
        assert wrong.returncode == 1
        assert f"FAIL  images/n01440764_tench.jpeg: expected {tench + 1}, got {tench} kind 0" in wrong.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [TENCH, "--run-tests"],
        [TENCH, "--expect", f"{TENCH}=0"],
        [TENCH, "--url", "example.com"],
        [TENCH, "--in-flight", "0"],
        [TENCH, "--url", "http://127.0.0.1:1 /"],
        [TENCH, "--timeout", "nan"],
        ["--expect", TENCH],
        ["--unknown"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    result = run_tester(*arguments)
    assert result.returncode == 2
    assert "usage: test_server.py" in result.stderr


@pytest.mark.parametrize("key", ["sécret", "sec\x07ret", "“secret”", " "])
def test_key_invalid_in_a_header_exits_with_2_unprinted(key):
    for arguments, environment in ((["--api-key", key], {}), ([], {"BANANA_API_KEY": key})):
        result = run_tester(TENCH, "--url", "http://127.0.0.1:1", *arguments, **environment)
        assert result.returncode == 2
        assert "BANANA_API_KEY: expected ASCII text" in result.stderr
        assert "ret" not in result.stderr


def test_url_and_key_may_end_in_a_line_feed(tmp_path):
    with ready(tmp_path, stub=True, BANANA_API_KEY="key") as served:
        (tmp_path / "release").touch()
        (tmp_path / "answer.json").write_text(json.dumps(RESULT))
        url = f"{served.url}/\n".replace("http", "HTTP")
        assert run_tester(TENCH, BANANA_MODEL_URL=url, BANANA_API_KEY="key\n").returncode == 0
        assert run_tester(TENCH, "--url", url, "--api-key", " key\r\n").returncode == 0
