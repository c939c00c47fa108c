"""Other platforms' routes through real sockets: the same responses as POST /, on other routes."""

import base64
import gzip
import subprocess
import sys
from contextlib import closing

import pytest

from tests.server_process import DEADLINE_S, ROOT, is_ready, ready, serving, wait_until
from tests.serving.inferences import IMAGES, JPEG, error_of, infer_route, tensor

# -- SageMaker and RunPod --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"json": {"image": base64.b64encode(IMAGES[0]).decode(), "top_k": 2}},
        {"data": IMAGES[0], "headers": JPEG, "params": {"top_k": "2"}},
        {"data": IMAGES[0], "headers": {"Content-Type": "application/x-image"}, "params": {"top_k": "2"}},
        {"files": {"image": IMAGES[0]}, "data": {"top_k": "2"}},
    ],
    ids=["json", "bytes", "sagemakers-own-type", "form"],
)
def test_invocations_respond_like_post(served, arguments):
    answers = [served.post(path, **arguments).json() for path in ("/", "/invocations")]
    assert answers[0]["class_id"] == 0
    assert [set(answer.pop("timing_ms")) for answer in answers] == [{"decode", "model", "total"}] * 2
    assert answers[0] == answers[1]


def test_invocations_refuse_like_post(served):
    answers = [served.post(path, data=b"no image", headers=JPEG) for path in ("/", "/invocations")]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[0].json() == answers[1].json()


def test_ping_follows_loading_ready_and_stopping(tmp_path):
    with serving(tmp_path, "serve", stub=True) as served:
        assert (served.get("/ping").status_code, served.get("/ping").content) == (204, b"")
        (tmp_path / "loaded").touch()
        wait_until(lambda: is_ready(served), "the server is ready")
        assert (served.get("/ping").status_code, served.get("/ping").json()) == (200, {"state": "healthy"})
        with closing(served.connect()) as connection:  # an unfinished request keeps the server running
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
            served.process.terminate()
            wait_until(lambda: not is_ready(served), "readiness has gone")
            assert served.get("/ping").status_code == 503


@pytest.mark.parametrize(("argument", "code"), [("train", 2), ("--help", 0), ("-h", 0)])
def test_other_arguments_print_the_usage(argument, code):
    command = [sys.executable, "server.py", argument]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == code
    said, silent = (ended.stdout, ended.stderr) if code == 0 else (ended.stderr, ended.stdout)
    assert said.startswith("usage: server.py") and silent == ""


# -- readiness, keys, limits -----------------------------------------------------------------------------------------


def test_v2_is_live_but_not_ready_during_model_load(tmp_path):
    with serving(tmp_path, stub=True) as served:
        assert served.get("/v2/health/live").json() == {"live": True}
        for path in ("/v2", "/v2/health/ready", "/v2/models/stub", "/v2/models/stub/ready", "/v2/models/other"):
            assert "loading" in error_of(served.get(path), 503)
        assert "loading" in error_of(served.post("/v2/models/stub/infer", json=tensor()), 503)
        (tmp_path / "loaded").touch()
        wait_until(lambda: served.get("/v2/health/ready").ok, "v2 is ready")
        assert served.get("/v2/health/ready").json() == {"ready": True}
        assert served.get("/v2/models/stub/ready").json() == {"name": "stub", "ready": True}


def test_v2_is_not_ready_while_the_model_fails(tmp_path):
    with ready(tmp_path, stub=True) as served:
        (tmp_path / "broken").touch()
        assert served.post(data=b"fail", headers=JPEG).status_code == 500
        for path in ("/v2/health/ready", "/v2/models/stub/ready"):
            wait_until(lambda path=path: not served.get(path).ok, "the model was found to be broken")
            assert "warm-up image" in error_of(served.get(path), 503)
        assert served.get("/v2/health/live").ok


def test_v2_shares_the_queue_and_the_limits(tmp_path):
    with ready(tmp_path, stub=True, MAX_QUEUE="0", MAX_BODY_MB="1") as served:
        assert "1 MB" in error_of(served.post("/v2/models/stub/infer", data=b"x" * 1_000_001), 413)
        call = served.connect()
        call.sendall(b"POST / HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: 1\r\n\r\nx")
        wait_until(lambda: any(tmp_path.glob("began-*")), "a request is running")
        assert "try again" in error_of(served.post("/v2/models/stub/infer", json=tensor()), 503)
        (tmp_path / "release").touch()
        assert call.recv(100).startswith(b"HTTP/1.1 200 ")


def test_counts_and_logs_inferences(served):
    route = infer_route(served)
    before = served.metric("classifier_model_seconds_count")
    answer = served.post(route, json=tensor())
    assert served.metric("classifier_model_seconds_count") == before + 1
    [line] = [line for line in served.log.read_text().splitlines() if f"id={answer.headers['X-Request-ID']}" in line]
    assert f"path={route}" in line and '["pixels 2x1"]' in line and "model_ms=" in line


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd"])
def test_422_for_a_content_encoding(served, encoding):
    for path in ("/", "/invocations"):
        refused = served.post(path, data=gzip.compress(IMAGES[0]), headers=JPEG | {"Content-Encoding": encoding})
        assert (refused.status_code, refused.json()["error"]["type"]) == (422, "invalid_input")
        assert "compressed" in refused.json()["error"]["message"]
        assert served.post(path, data=IMAGES[0], headers=JPEG | {"Content-Encoding": "identity"}).ok
