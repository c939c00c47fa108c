"""server.py through real sockets: every status of the HTTP contract, and every route."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from banana_dev import Client
from banana_dev.client import ClientException

from tests.clients import begin_call, status_of
from tests.server_process import NEWT, TENCH, Served, is_ready, ready, serving, wait_until

TENCH_BASE64 = base64.b64encode(TENCH.read_bytes()).decode()


def refuse(served: Served, route: str, inputs: object, key: str = "") -> None:
    """Call with Banana's client; expect it to raise at once, without a retry."""
    with pytest.raises(ClientException) as raised:
        Client(key, served.url, verbosity="").call(route, json=inputs, headers={}, retry_timeout=60)
    assert "Retry timeout" not in str(raised.value)


@contextmanager
def running_request(served: Served, folder: Path) -> Iterator[list[int]]:
    """Have the stub's server process a request while the context lasts; give the list that will hold its status."""
    results: list[int] = []
    caller = threading.Thread(target=lambda: results.append(served.post(json={}).status_code))
    caller.start()
    wait_until(lambda: any(folder.glob("began-*")), "a request is running")
    yield results
    caller.join()


def error_of(response: requests.Response, status: int, kind: str) -> str:
    """Check an error response and return its message."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"type", "message"}
    assert response.json()["error"]["type"] == kind
    return response.json()["error"]["message"]


def test_banana_client_gets_the_class(served):
    answer, _ = Client("", served.url, verbosity="").call("/", json={"image": TENCH_BASE64}, headers={})
    assert (answer["class_id"], answer["class_name"]) == (0, "tench")
    assert answer["predictions"][0] == {name: answer[name] for name in ("class_id", "class_name", "probability")}
    assert len(answer["predictions"]) == 5
    assert 0 < answer["timing_ms"]["decode"] + answer["timing_ms"]["model"] <= answer["timing_ms"]["total"] + 0.01


@pytest.mark.parametrize(
    "arguments",
    [
        {"json": {"image": TENCH_BASE64, "top_k": 2}},
        {"json": {"image": "data:image/jpeg;base64," + TENCH_BASE64, "top_k": 2}},
        {"json": json.dumps({"image": TENCH_BASE64, "top_k": 2})},
        {"data": json.dumps({"image": TENCH_BASE64, "top_k": 2})},
        {"data": TENCH.read_bytes(), "headers": {"Content-Type": "image/jpeg"}, "params": {"top_k": "2"}},
        {"data": TENCH.read_bytes(), "headers": {"Content-Type": "application/octet-stream"}, "params": {"top_k": "2"}},
        {"files": {"image": TENCH.read_bytes()}, "data": {"top_k": "2"}},
        {"files": {"image": TENCH.read_bytes()}, "params": {"top_k": "2"}},
        {"data": iter([TENCH.read_bytes()]), "headers": {"Content-Type": "image/jpeg"}, "params": {"top_k": "2"}},
    ],
    ids=["json", "data-url", "json-twice", "no-type", "bytes", "octet-stream", "form", "form-query", "chunked"],
)
def test_all_ways_to_send_an_image_get_the_same_response(served, arguments):
    answer = served.post(**arguments).json()
    assert (answer["class_id"], answer["class_name"]) == (0, "tench")
    assert answer["probability"] == pytest.approx(served.post(json={"image": TENCH_BASE64}).json()["probability"])
    assert len(answer["predictions"]) == 2


def test_returns_several_images_in_order(served):
    newt = base64.b64encode(NEWT.read_bytes()).decode()
    answer = served.post(json={"images": [TENCH_BASE64, newt, TENCH_BASE64], "top_k": 1}).json()
    assert [result["class_id"] for result in answer["results"]] == [0, 26, 0]
    assert set(answer) == {"results", "timing_ms"}


def test_returns_all_probabilities_on_request(served):
    answer = served.post(json={"image": TENCH_BASE64, "probabilities": True}).json()
    assert len(answer["probabilities"]) == 1000
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert answer["probabilities"][0] == answer["probability"]


def test_health_names_what_runs(served):
    health = served.get("/healthcheck")
    assert health.status_code == 200
    assert health.json()["state"] == "healthy"
    assert health.json()["gpu"] is False
    assert health.json()["model"] in ("resnet18", "efficientnet-lite0")
    assert health.json()["execution_provider"].endswith("ExecutionProvider")


def test_banana_client_warms_up(served):
    assert Client("", served.url, verbosity="").warmup()[0] == {"warm": True}


@pytest.mark.parametrize("path", ["/_k/status", "/__status__"])
def test_status_counts_calls(served, path):
    before = served.get(path).json()
    served.post(json={"image": TENCH_BASE64})
    after = served.get(path).json()
    assert after["sequence_number"] == before["sequence_number"] + 1
    assert after["gpu_available"] is True
    assert after["inference_time"] == 0
    assert after["idle_time"] >= 0


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "image"),
        ([], "not the JSON that is expected"),
        ("not JSON inside", "not JSON"),
        ({"image": 7}, "base64"),
        ({"image": ""}, "empty"),
        ({"image": "@@@@"}, "base64"),
        ({"image": base64.b64encode(b"no image").decode()}, "not an image"),
        ({"image": TENCH_BASE64[: len(TENCH_BASE64) // 8 * 4]}, "incomplete"),
        ({"image": TENCH_BASE64, "images": []}, "either"),
        ({"images": []}, "1 to"),
        ({"images": [TENCH_BASE64] * 17}, "1 to 16"),
        ({"images": [TENCH_BASE64, "!"]}, "base64"),
        ({"images": [TENCH_BASE64, base64.b64encode(b"no image").decode()]}, r"images\[1\]"),
        ({"image": TENCH_BASE64, "top_k": 0}, "top_k"),
        ({"image": TENCH_BASE64, "top_k": True}, "top_k"),
        ({"image": TENCH_BASE64, "top_k": "5"}, "top_k"),
        ({"image": TENCH_BASE64, "probabilities": 1}, "probabilities"),
    ],
)
def test_422_for_input_that_cannot_be_classified(served, inputs, says):
    refuse(served, "/", inputs)
    message = error_of(served.post(json=inputs), 422, "invalid_input")
    assert re.search(says, message), message


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": b""},
        {"data": b"\xff\xd8\xff"},
        {"data": b"", "headers": {"Content-Type": "image/jpeg"}},
        {"files": {"photo": b"wrong field"}},
        {"files": [("image", TENCH.read_bytes()), ("image", TENCH.read_bytes())]},
        {"data": b"no form", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"data": b"no form", "headers": {"Content-Type": "multipart/form-data"}},
        {"data": TENCH.read_bytes(), "headers": {"Content-Type": "image/jpeg"}, "params": {"top_k": "many"}},
    ],
)
def test_422_for_other_bodies_without_an_image(served, arguments):
    error_of(served.post(**arguments), 422, "invalid_input")


def test_404_and_405_name_the_route(served):
    refuse(served, "/predict", {})
    refuse(served, "/healthcheck", {})
    assert "POST an image to /" in error_of(served.post("/predict", json={}), 404, "not_found")
    assert "POST an image to /" in error_of(served.post("/healthcheck", json={}), 405, "method_not_allowed")
    assert set(requests.put(served.url).headers["Allow"].split(", ")) == {"GET", "HEAD", "POST"}


@pytest.mark.parametrize("chunked", [False, True], ids=["length-known", "chunked"])
def test_413_reaches_a_client_that_is_still_sending(served, chunked):
    body = b'{"image": "' + b"A" * 30_000_000
    response = served.post(data=iter([body[:25_000_000], body[25_000_000:]]) if chunked else body)
    assert "20 MB" in error_of(response, 413, "too_large")
    if not chunked:
        refuse(served, "/", {"image": "A" * 30_000_000})


def test_401_without_the_key_or_with_another(tmp_path):
    with serving(tmp_path, BANANA_API_KEY="the key") as served:
        wait_until(lambda: is_ready(served), "health needs no key")
        for key in ("", "another", "the", "the key and more", "cl\u00e9"):
            response = served.post(json={"image": TENCH_BASE64}, headers={"X-Banana-API-Key": key.encode()})
            assert "the key" not in error_of(response, 401, "unauthorized")
            assert response.headers["WWW-Authenticate"] == "Bearer"
        refuse(served, "/", {"image": TENCH_BASE64}, key="another")
        for header in ("X-Banana-API-Key: the key", "Authorization: Bearer the key", "authorization: bearer the key"):
            for blank in ("", " ", "\t "):
                request = f"GET /_k/status HTTP/1.1\r\nConnection: close\r\n{header}{blank}\r\n\r\n"
                assert served.raw(request.encode()).startswith(b"HTTP/1.1 200 ")
        answer, _ = Client("the key", served.url, verbosity="").call("/", json={"image": TENCH_BASE64}, headers={})
        assert answer["class_id"] == 0


def test_banana_client_retries_while_the_model_loads(tmp_path):
    with serving(tmp_path, stub=True) as served:
        assert "loading" in error_of(served.post(json={}), 503, "unavailable")
        assert served.post(json={}).headers["Retry-After"] == "1"
        assert served.get("/_k/status").json()["gpu_available"] is False
        error_of(served.get("/healthcheck"), 503, "unavailable")
        with pytest.raises(ClientException):
            Client("", served.url, verbosity="").warmup()
        (tmp_path / "release").touch()
        threading.Timer(0.3, (tmp_path / "loaded").touch).start()
        assert Client("", served.url, verbosity="").call("/", json={}, headers={})[0]["class_id"] == 0


def test_503_when_the_queue_is_full_while_health_is_good(tmp_path):
    with ready(tmp_path, stub=True, MAX_QUEUE="0") as served, running_request(served, tmp_path) as results:
        assert served.get("/healthcheck").status_code == 200
        assert served.get("/_k/status").json()["gpu_available"] is False
        refused = served.post(json={})
        assert "all threads are busy, and 0 requests are waiting: try again" in error_of(refused, 503, "unavailable")
        assert refused.headers["Retry-After"] == "1"
        assert status_of(begin_call(served, length=9)) == 503  # without waiting for the body
        (tmp_path / "release").touch()
    assert results == [200]


def test_500_for_a_bug_reveals_nothing(tmp_path):
    with ready(tmp_path, stub=True) as served:
        refuse(served, "/", {"image": "ZmFpbA=="})
        response = served.post(json={"image": "ZmFpbA=="})
        error_of(response, 500, "internal_error")
        assert "secret" not in response.text
        assert "RuntimeError: a bug, with a secret in it" in served.log.read_text()


def test_503_after_sigterm_while_work_finishes(tmp_path):
    with ready(tmp_path, stub=True) as served:
        with running_request(served, tmp_path) as results:
            served.process.terminate()
            wait_until(lambda: not is_ready(served), "readiness has gone")
            refused = served.post(json={})
            assert "stopping" in error_of(refused, 503, "unavailable")
            assert refused.headers["Connection"] == "close"
            (tmp_path / "release").touch()
        assert results == [200]
        assert served.process.wait(60) == 0
