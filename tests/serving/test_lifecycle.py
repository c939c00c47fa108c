"""The server from start to end: invalid settings, broken models, health, signals."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest

from client.endpoint import free_port
from runtime.errors import Unavailable
from runtime.settings import ServerSettings
from serving.lifecycle import Lifecycle, State
from serving.work_queue import WorkQueue
from tests.clients import IMAGE, begin_call, flooding, status_of
from tests.server_process import DEADLINE_S, MODEL_PATH, ROOT, Served, is_ready, listens, ready, serving, wait_until


def logs(served: Served, text: str) -> bool:
    """Return whether the log contains the text."""
    return text in served.log.read_text()


def accepts_connections(served: Served) -> bool:
    """Return whether the server's port is open."""
    try:
        served.connect()
    except ConnectionRefusedError:
        return False
    return True


def get_stuck(served: Served) -> None:
    """Have the stub's server process a request that does not end."""
    begin_call(served, b"x")
    wait_until(lambda: served.metric("classifier_requests_in_progress") == 1, "a request is running")


def classify(served: Served, image: bytes) -> int:
    """Return the status of a request."""
    return served.post(data=image, headers={"Content-Type": "image/jpeg"}).status_code


# -- the end --------------------------------------------------------------------------------------------------------


def test_sigterm_under_load_loses_no_request(tmp_path):
    with ready(tmp_path, MAX_QUEUE="8") as served:
        with flooding(served, clients=16) as flood:
            wait_until(lambda: flood.statuses[200] >= 50 and flood.statuses[503] >= 50, "the flood is there")
            served.process.terminate()
            flood.leaving.set()
            assert served.process.wait(DEADLINE_S) == 0
        assert not flood.faults
        assert logs(served, "stopping")


def test_sigterm_waits_for_a_body_that_is_arriving(tmp_path):
    with ready(tmp_path) as served:
        call = served.connect()
        call.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        assert call.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"  # the server was ready, and reads the body
        served.process.terminate()
        wait_until(lambda: logs(served, "stopping"), "it has seen the signal")
        call.sendall(b'{"image":')
        assert status_of(call) == 503
        assert served.process.wait(DEADLINE_S) == 0


def test_sigterm_lets_a_refused_client_finish_sending(tmp_path):
    with ready(tmp_path) as served:
        call = served.connect()
        call.sendall(b"POST /nowhere HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        wait_until(lambda: logs(served, " status=404 "), "it is refused")
        served.process.terminate()
        wait_until(lambda: not accepts_connections(served), "the server has closed its port")
        for byte in b'{"image":':  # on a closed connection the first would be a reset, which discards the response
            call.sendall(bytes([byte]))
        assert status_of(call) == 404
        assert served.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_sigint_and_sighup_stop_it_like_sigterm(tmp_path, number):
    with ready(tmp_path) as served:
        served.process.send_signal(number)
        assert served.process.wait(DEADLINE_S) == 0
        assert logs(served, "stopping")


@contextmanager
def started(tmp_path: Path, *command: str, **options) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run a server, by default the stub's, without waiting for it to listen; give it and its port."""
    (tmp_path / "loaded").touch()
    port = free_port()
    environment = {"HOST": "127.0.0.1", "PORT": str(port), "STUB_DIR": str(tmp_path)} | options.pop("env", {})
    command = command or (sys.executable, "-m", "tests.stub")
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **options) as process:
        try:
            yield process, port
        finally:
            process.kill()


def test_sigterm_right_after_the_start_is_not_lost(tmp_path):
    with started(tmp_path, stderr=subprocess.PIPE) as (process, _):
        assert any(b" listening " in line for line in process.stderr)
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def test_serves_with_stderr_closed(tmp_path):
    with started(tmp_path, "sh", "-c", f"exec '{sys.executable}' -m tests.stub 2>&-") as (process, port):
        served = Served(process, port, tmp_path / "server.log")
        served.log.touch()
        wait_until(lambda: listens(served) and is_ready(served), "the server is ready")
        assert Path(f"/proc/{process.pid}/fd/2").readlink() == Path(os.devnull)
        assert served.terminate() == 0


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_logs_a_url_and_nothing_of_sanic_on_a_terminal(tmp_path, log_format):
    environment = {"HOST": "0.0.0.0", "LOG_FORMAT": log_format}
    ours, theirs = os.openpty()
    with started(tmp_path, env=environment, stdout=theirs, stderr=theirs) as (_, port):
        os.close(theirs)
        said = ""
        while "ready" not in said:
            said += os.read(ours, 65_536).decode()
    os.close(ours)
    assert f"http://127.0.0.1:{port}" in said
    assert "PRODUCTION" not in said and "x1b" not in said and "\x1b" not in said


@pytest.mark.parametrize("loaded", ["pybase64", "multiarray", "uvloop", "httptools"])
def test_ctrl_c_during_the_start_is_one_line(tmp_path, loaded):
    with started(tmp_path, sys.executable, "server.py", stderr=subprocess.PIPE, text=True) as (process, _):
        wait_until(lambda: loaded in Path(f"/proc/{process.pid}/maps").read_text(), f"{loaded} is imported")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert "Traceback" not in said
    assert (process.returncode, "interrupted" in said) in ((130, True), (0, False))  # 0: it was serving


def test_a_blocked_log_loses_lines_but_no_request(tmp_path):
    with started(tmp_path, stderr=subprocess.PIPE) as (process, port):
        assert any(b" listening " in line for line in process.stderr)
        with closing(HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)) as connection:
            for _ in range(2_000):
                connection.request("GET", "/v2/health/live", headers={"X-Banana-Request-ID": "x" * 100})
                assert connection.getresponse().read()
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
        lines = process.stderr.read().splitlines()
        assert 100 < len(lines) < 2_000
        assert all(line.startswith(b"20") and b" info " in line for line in lines)


@pytest.mark.parametrize(("grace_s", "signals"), [("1", 1), ("3600", 2)], ids=["grace-over", "second-signal"])
def test_gives_up_stuck_work_when_told_to_stop(tmp_path, grace_s, signals):
    with ready(tmp_path, stub=True, SHUTDOWN_GRACE_S=grace_s) as served:
        get_stuck(served)
        for count in range(1, signals + 1):
            served.process.terminate()
            wait_until(lambda count=count: served.log.read_text().count(" stopping ") == count, "it is seen")
        assert served.process.wait(DEADLINE_S) == 1
        assert logs(served, f"not finished pending=1 grace_s={grace_s}")


@pytest.mark.parametrize(("loads", "code"), [(True, 0), (False, 1)])
def test_sigterm_during_model_load_waits_for_a_bounded_time(tmp_path, loads, code):
    with serving(tmp_path, stub=True, SHUTDOWN_GRACE_S="3600" if loads else "1") as served:
        wait_until(lambda: logs(served, "listening"), "it obeys signals")
        served.process.terminate()
        wait_until(lambda: logs(served, "stopping"), "it has seen the signal")
        if loads:
            (tmp_path / "loaded").touch()
        assert served.process.wait(DEADLINE_S) == code


def test_stays_stopping_if_the_model_loads_afterwards():
    backend, loading = SimpleNamespace(status=dict), Future()
    lifecycle = Lifecycle(None, backend, WorkQueue(1, 0), loading, ServerSettings(), State.STOPPING)
    loading.set_result(None)
    lifecycle._on_loaded(loading)
    assert lifecycle.state is State.STOPPING


def test_restarts_on_the_same_port_after_sigkill(tmp_path):
    port = free_port()
    for life in ("first", "second"):
        (tmp_path / life).mkdir()
        with ready(tmp_path / life, port=port) as served:
            begin_call(served, IMAGE[:1000], len(IMAGE))
            assert classify(served, IMAGE) == 200
            served.process.kill()
            assert served.process.wait(DEADLINE_S) == -signal.SIGKILL


# -- health ---------------------------------------------------------------------------------------------------------


def test_health_follows_the_model_failing_and_recovering(tmp_path):
    with ready(tmp_path, stub=True) as served:
        (tmp_path / "release").touch()
        (tmp_path / "broken").touch()
        assert is_ready(served)  # nothing has failed yet
        assert classify(served, b"fail") == 500
        wait_until(lambda: not is_ready(served), "the model was found to be broken")
        assert "warm-up image" in served.get("/healthcheck").json()["error"]["message"]
        (tmp_path / "broken").unlink()
        wait_until(lambda: is_ready(served), "the model was found to be whole")
        assert classify(served, b"x") == 200


def test_a_full_queue_does_not_mark_the_model_as_failing():
    async def test() -> None:
        queue, release = WorkQueue(1, 0), threading.Event()
        lifecycle = Lifecycle(None, SimpleNamespace(warm_up=int), queue, Future(), ServerSettings(), State.READY)
        lifecycle.is_suspect = True
        work = asyncio.create_task(queue.run(release.wait, DEADLINE_S))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            queue.require_room()
        await lifecycle.require_healthy()
        assert lifecycle.is_suspect
        release.set()
        await work
        await lifecycle.require_healthy()
        assert not lifecycle.is_suspect

    asyncio.run(test())


def test_health_survives_a_bug_in_one_request(tmp_path):
    with ready(tmp_path, stub=True) as served:
        assert classify(served, b"fail") == 500
        assert is_ready(served)


def test_health_fails_while_a_request_is_stuck(tmp_path):
    with ready(tmp_path, stub=True, RESPONSE_TIMEOUT_S="1") as served:
        get_stuck(served)
        wait_until(lambda: not is_ready(served), "the call was found to be stuck")
        assert "running for" in served.get("/healthcheck").json()["error"]["message"]
        [stuck] = served.connections
        assert status_of(stuck) == 503  # its client was told, and did not wait forever
        (tmp_path / "release").touch()
        wait_until(lambda: is_ready(served), "the call has ended")


# -- a bad start ----------------------------------------------------------------------------------------------------


def start(**environment: str) -> str:
    """Start a server that cannot start; return its output."""
    environment = os.environ | {"HOST": "127.0.0.1", "PORT": str(free_port())} | environment
    ended = subprocess.run(
        [sys.executable, "server.py"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("LOG_FORMAT", "xml"),
        ("CORS_ORIGIN", "https://a.example, https://b.example"),
        ("CORS_ORIGIN", "example.com"),
        ("THREADS", "0"),
        ("MAX_QUEUE", "-1"),
        ("MAX_BODY_MB", "1.5"),
        ("MAX_BODY_MB", "20MB"),
        ("REQUEST_TIMEOUT_S", "0"),
        ("RESPONSE_TIMEOUT_S", "never"),
        ("KEEP_ALIVE_TIMEOUT_S", "1e3"),
        ("SHUTDOWN_GRACE_S", " 1"),
        ("MAX_IMAGES", "\u0665"),
        ("MAX_IMAGE_MB", "1" * 5000),
    ],
)
def test_names_an_invalid_setting(name, value):
    *_, said = start(**{name: value}).splitlines()
    assert said.startswith(f"server.py: {name}=")
    assert "expected" in said


def test_names_a_port_in_use(tmp_path):
    with serving(tmp_path, stub=True) as served:
        assert f"cannot listen on 127.0.0.1:{served.port}" in start(PORT=str(served.port))


@pytest.mark.parametrize(
    "damage", [lambda model: b"garbage" * 100, lambda model: model[: len(model) // 2], bytes.upper]
)
def test_names_an_invalid_model_file(tmp_path, damage):
    model = tmp_path / "classifier.onnx"
    model.write_bytes(damage(MODEL_PATH.read_bytes()))
    assert f"{model} was not written by convert_to_onnx.py" in start(MODEL_PATH=str(model))


def test_names_the_converter_if_the_model_file_is_missing():
    assert "nowhere.onnx is not there: make it with `python convert_to_onnx.py`" in start(MODEL_PATH="nowhere.onnx")


def test_exits_if_the_model_fails_on_its_warm_up_image(tmp_path):
    (tmp_path / "broken").touch()
    with serving(tmp_path, stub=True) as served:
        assert served.get("/healthcheck").status_code == 503
        (tmp_path / "loaded").touch()
        assert served.process.wait(DEADLINE_S) == 1
        assert logs(served, "the model cannot be loaded")
