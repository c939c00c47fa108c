"""platforms.py through real sockets and with Triton's own client: the same answers as POST /, on other routes."""

import base64
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import requests
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from tests.server_process import DEADLINE_S, NEWT, ROOT, TENCH, Served, is_ready, ready, serving, wait_until

JPEG = {"Content-Type": "image/jpeg"}
PROBES = ("/ping", "/v2/health/live", "/v2/health/ready")
PICTURES = [TENCH.read_bytes(), NEWT.read_bytes()]
PIXELS = [np.asarray(Image.open(path).convert("RGB")) for path in (TENCH, NEWT)]


def infer_route(served: Served) -> str:
    """Return where the server's model is inferred."""
    return f"/v2/models/{served.get('/healthcheck').json()['model']}/infer"


def tensor(**changes) -> dict:
    """Return the body of an inference of one small picture, with changes to its input."""
    return {
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [1, 2, 3, 4, 5, 6]} | changes]
    }


def error_of(response: requests.Response, status: int) -> str:
    """Return what v2 says of an error, having checked everything else of it."""
    assert response.status_code == status, response.text
    assert (status == 503) == ("Retry-After" in response.headers)
    assert set(response.json()) == {"error"}
    assert isinstance(response.json()["error"], str)
    return response.json()["error"]


# -- SageMaker and RunPod --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"json": {"image": base64.b64encode(PICTURES[0]).decode(), "top_k": 2}},
        {"data": PICTURES[0], "headers": JPEG, "params": {"top_k": "2"}},
        {"data": PICTURES[0], "headers": {"Content-Type": "application/x-image"}, "params": {"top_k": "2"}},
        {"files": {"image": PICTURES[0]}, "data": {"top_k": "2"}},
    ],
    ids=["json", "bytes", "sagemakers-own-type", "form"],
)
def test_invocations_answer_as_post_does(served, arguments):
    answers = [served.post(path, **arguments).json() for path in ("/", "/invocations")]
    assert answers[0]["class_id"] == 0
    assert [set(answer.pop("timing_ms")) for answer in answers] == [{"decode", "model", "total"}] * 2
    assert answers[0] == answers[1]


def test_invocations_refuse_as_post_does(served):
    answers = [served.post(path, data=b"no picture", headers=JPEG) for path in ("/", "/invocations")]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[0].json() == answers[1].json()


def test_ping_says_loading_then_ready_then_stopping(tmp_path):
    with serving(tmp_path, "serve", stub=True) as served:
        assert (served.get("/ping").status_code, served.get("/ping").content) == (204, b"")
        (tmp_path / "loaded").touch()
        wait_until(lambda: is_ready(served), "the server is ready")
        assert (served.get("/ping").status_code, served.get("/ping").json()) == (200, {"state": "healthy"})
        with closing(served.connect()) as connection:  # a request that is not over, so that the server goes on
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
            served.process.terminate()
            wait_until(lambda: not is_ready(served), "readiness has gone")
            assert served.get("/ping").status_code == 503


def test_any_other_argument_is_refused_with_the_usage():
    command = [sys.executable, "server.py", "train"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 1
    assert ended.stderr.startswith("usage: python server.py [serve]")


# -- readiness, keys, limits -----------------------------------------------------------------------------------------


def test_v2_is_live_but_not_ready_while_the_model_loads(tmp_path):
    with serving(tmp_path, stub=True) as served:
        assert served.get("/v2/health/live").json() == {"live": True}
        for path in ("/v2", "/v2/health/ready", "/v2/models/stub", "/v2/models/stub/ready", "/v2/models/other"):
            assert "loading" in error_of(served.get(path), 503)
        assert "loading" in error_of(served.post("/v2/models/stub/infer", json=tensor()), 503)
        (tmp_path / "loaded").touch()
        wait_until(lambda: served.get("/v2/health/ready").ok, "v2 is ready")
        assert served.get("/v2/health/ready").json() == {"ready": True}
        assert served.get("/v2/models/stub/ready").json() == {"name": "stub", "ready": True}


def test_v2_is_not_ready_while_the_model_fails_on_its_own_picture(tmp_path):
    with ready(tmp_path, stub=True) as served:
        (tmp_path / "broken").touch()
        assert served.post(data=b"fail", headers=JPEG).status_code == 500
        for path in ("/v2/health/ready", "/v2/models/stub/ready"):
            wait_until(lambda path=path: not served.get(path).ok, "the model was found to be broken")
            assert "warm-up picture" in error_of(served.get(path), 503)
        assert served.get("/v2/health/live").ok


def test_probes_need_no_key_and_everything_else_does(tmp_path):
    with ready(tmp_path, BANANA_API_KEY="the key") as served:
        for path in PROBES:
            assert served.get(path).status_code == 200
            assert requests.head(served.url + path, timeout=DEADLINE_S).status_code == 200
        route = infer_route(served)
        assert served.post("/invocations", data=PICTURES[0], headers=JPEG).status_code == 401
        for path in ("/v2", route.removesuffix("/infer"), route.replace("/infer", "/ready")):
            assert "key" in error_of(served.get(path), 401)
        assert "key" in error_of(served.post(route, json=tensor()), 401)
        assert served.post(route, json=tensor(), headers={"X-Banana-API-Key": "the key"}).status_code == 200
        with closing(InferenceServerClient(served.url.removeprefix("http://"))) as client:
            assert client.get_server_metadata(headers={"Authorization": "Bearer the key"})["name"] == "classifier"


def test_v2_shares_the_queue_and_the_limits(tmp_path):
    with ready(tmp_path, stub=True, MAX_QUEUE="0", MAX_BODY_MB="1") as served:
        assert "1 MB" in error_of(served.post("/v2/models/stub/infer", data=b"x" * 1_000_001), 413)
        call = served.connect()
        call.sendall(b"POST / HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: 1\r\n\r\nx")
        wait_until(lambda: any(tmp_path.glob("began-*")), "a call is in work")
        assert "try again" in error_of(served.post("/v2/models/stub/infer", json=tensor()), 503)
        (tmp_path / "release").touch()
        assert call.recv(100).startswith(b"HTTP/1.1 200 ")


def test_an_inference_is_counted_and_logged_like_any_call(served):
    route = infer_route(served)
    before = served.metric("classifier_model_seconds_count")
    answer = served.post(route, json=tensor())
    assert served.metric("classifier_model_seconds_count") == before + 1
    [line] = [line for line in served.log.read_text().splitlines() if f"id={answer.headers['X-Request-ID']}" in line]
    assert f"path={route}" in line and '["pixels 2x1"]' in line and "model_ms=" in line


# -- Open Inference Protocol v2, with Triton's client ----------------------------------------------------------------


@pytest.fixture(scope="module")
def triton(served: Served) -> Iterator[InferenceServerClient]:
    """Triton's client of the real server."""
    with closing(InferenceServerClient(served.url.removeprefix("http://"))) as client:
        yield client


@pytest.fixture(scope="module")
def model(served: Served) -> str:
    """The name of the real server's model."""
    return served.get("/healthcheck").json()["model"]


@pytest.fixture(scope="module")
def wanted(served: Served) -> np.ndarray:
    """The probabilities of both pictures by POST /."""
    pictures = [base64.b64encode(picture).decode() for picture in PICTURES]
    results = served.post(json={"images": pictures, "probabilities": True}).json()["results"]
    return np.array([result["probabilities"] for result in results], np.float32)


def as_input(datatype: str, binary: bool, *which: int) -> InferInput:
    """Return the pictures of those numbers as Triton's client sends them."""
    if datatype == "UINT8":
        array = np.stack([PIXELS[n] for n in which])
    else:  # in JSON it writes bytes as text, and leaves it to the caller to encode them
        array = np.array([PICTURES[n] if binary else base64.b64encode(PICTURES[n]) for n in which], object)
    tensor = InferInput("image", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


@pytest.mark.parametrize(
    ("datatype", "binary", "binary_answer"),
    [
        ("UINT8", True, None),
        ("UINT8", False, None),
        ("UINT8", True, False),
        ("BYTES", True, None),
        ("BYTES", False, None),
        ("BYTES", True, True),
        ("BYTES", True, False),
        ("BYTES", False, True),
    ],
)
def test_triton_gets_the_probabilities_of_post(triton, model, wanted, datatype, binary, binary_answer):
    outputs = None
    if binary_answer is not None:
        outputs = [InferRequestedOutput("probabilities", binary_data=binary_answer)]
    for n in range(len(PICTURES)):
        result = triton.infer(model, [as_input(datatype, binary, n)], outputs=outputs, request_id=f"call {n}")
        assert result.get_response()["id"] == f"call {n}"
        assert result.get_response()["model_name"] == model
        [output] = result.get_response()["outputs"]
        assert ("data" in output) == (binary_answer is False)
        got = result.as_numpy("probabilities")
        assert got.dtype == np.float32 and got.shape == (1, 1000)
        np.testing.assert_array_equal(got[0], wanted[n])


def test_an_id_that_was_given_comes_back(served):
    answers = [served.post(infer_route(served), json=tensor() | {"id": text}).json() for text in ("", "7")]
    assert [answer["id"] for answer in answers] == ["", "7"]
    assert "id" not in served.post(infer_route(served), json=tensor()).json()


def test_triton_gets_several_pictures_in_their_order(triton, model, wanted):
    result = triton.infer(model, [as_input("BYTES", True, 1, 0, 1)])
    np.testing.assert_allclose(result.as_numpy("probabilities"), wanted[[1, 0, 1]], atol=1e-3)
    same_size = np.repeat(PIXELS[0][None], 3, axis=0)
    several = InferInput("image", list(same_size.shape), "UINT8")
    several.set_data_from_numpy(same_size)
    np.testing.assert_allclose(triton.infer(model, [several]).as_numpy("probabilities"), wanted[[0, 0, 0]], atol=1e-3)


@pytest.mark.parametrize("binary", [True, False])
def test_files_may_have_a_dimension_more_as_mlservers_codecs_send_them(triton, model, wanted, binary):
    flat = as_input("BYTES", binary, 1, 0)
    result = triton.infer(model, [flat.set_shape([2, 1])])
    np.testing.assert_allclose(result.as_numpy("probabilities"), wanted[[1, 0]], atol=1e-3)


def test_files_may_be_nested_as_that_shape_says(served, wanted):
    nested = [[base64.b64encode(PICTURES[n]).decode()] for n in (1, 0)]
    body = tensor(datatype="BYTES", shape=[2, 1], data=nested)
    [output] = served.post(infer_route(served), json=body).json()["outputs"]
    assert output["shape"] == [2, 1000]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), wanted[[1, 0]], atol=1e-3)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_gets_classes_by_name_with_the_classification_extension(triton, model, wanted, binary):
    outputs = [InferRequestedOutput("probabilities", binary_data=binary, class_count=3)]
    result = triton.infer(model, [as_input("BYTES", True, 0, 1)], outputs=outputs)
    assert result.get_output("probabilities")["datatype"] == "BYTES"
    named = result.as_numpy("probabilities")
    assert named.shape == (2, 3)
    text = named[0][0].decode() if binary else named[0][0]
    probability, class_id, name = text.split(":")
    assert (class_id, name) == ("0", "tench")
    assert float(probability) == pytest.approx(wanted[0][0], abs=1e-3)


def test_triton_learns_what_there_is(triton, model):
    assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready(model)
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    assert triton.get_model_metadata(model) == {
        "name": model,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 1000]}],
    }


def test_triton_is_told_that_there_is_no_such_model(triton, model):
    assert not triton.is_model_ready("another")
    for ask in (triton.get_model_metadata, lambda name: triton.infer(name, [as_input("BYTES", True, 0)])):
        with pytest.raises(InferenceServerException, match=f"no such model.* {model}") as raised:
            ask("another")
        assert raised.value.status() == "404"


def test_triton_may_name_the_version_that_there_is_and_no_other(triton, model, wanted):
    assert triton.is_model_ready(model, "1") and not triton.is_model_ready(model, "2")
    assert triton.get_model_metadata(model, "1") == triton.get_model_metadata(model)
    result = triton.infer(model, [as_input("BYTES", True, 0)], model_version="1")
    assert result.get_response()["model_version"] == "1"
    np.testing.assert_array_equal(result.as_numpy("probabilities")[0], wanted[0])
    assert "model_version" not in triton.infer(model, [as_input("BYTES", True, 0)]).get_response()
    for ask in (
        triton.get_model_metadata,
        lambda name, number: triton.infer(name, [as_input("BYTES", True, 0)], number),
    ):
        with pytest.raises(InferenceServerException, match=f"no such version.* {model} is 1") as raised:
            ask(model, "2")
        assert raised.value.status() == "404"


def test_numbers_may_be_nested_as_the_shape_says(served):
    pixels = PIXELS[0][:40, :30]
    shape, route = [1, *pixels.shape], infer_route(served)
    flat, nested = (
        served.post(route, json=tensor(shape=shape, data=data)).json()
        for data in (pixels.ravel().tolist(), [pixels.tolist()])
    )
    assert flat == nested
    assert sum(flat["outputs"][0]["data"]) == pytest.approx(1, abs=1e-3)


def test_null_is_as_if_the_field_were_not_there(served):
    plain = served.post(infer_route(served), json=tensor()).json()
    nothing = {"binary_data": None, "classification": None}
    for output in (None, [{"name": None, "parameters": None}], [{"name": "probabilities", "parameters": nothing}]):
        for parameters in (None, {"binary_data_output": None}):
            body = tensor(parameters=None) | {"id": None, "parameters": parameters, "outputs": output}
            assert served.post(infer_route(served), json=body).json() == plain
    body = json.dumps(tensor(data=None, parameters={"binary_data_size": 6})).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    binary = served.post(infer_route(served), data=body + bytes(range(1, 7)), headers=headers)
    assert binary.json() == plain


# -- what is refused -------------------------------------------------------------------------------------------------

HUGE = 10**40


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "inputs"),
        ([], "JSON"),
        ({"inputs": []}, "one input"),
        (tensor(name="another"), "one input"),
        ({"inputs": tensor()["inputs"] * 2}, "one input"),
        (tensor() | {"outputs": [{"name": "another"}]}, "one output"),
        (tensor() | {"outputs": [{"name": "probabilities"}] * 2}, "one output"),
        (tensor() | {"outputs": [{"name": "probabilities", "parameters": {"classification": 0}}]}, "classification"),
        (tensor() | {"outputs": [{"name": "probabilities", "parameters": {"binary_data": 1}}]}, "binary_data"),
        (tensor() | {"id": 7}, "id"),
        (tensor(datatype="FP32"), "expected pixels"),
        (tensor(datatype="BYTES"), "expected pixels"),
        (tensor(datatype="BYTES", shape=[]), "expected pixels"),
        (tensor(datatype="BYTES", shape=[1, 2]), "expected pixels"),
        (tensor(datatype="BYTES", shape=[1, 1, 1]), "expected pixels"),
        (tensor(shape=[]), "expected pixels"),
        (tensor(shape=[6]), "expected pixels"),
        (tensor(shape=[1, 1, 2, 3, 1]), "expected pixels"),
        (tensor(shape=[1, 1, 6, 1]), "expected pixels"),
        (tensor(shape=[-1, -1, 2, 3]), "expected pixels"),
        (tensor(shape=[1, 0, 2, 3]), "expected pixels"),
        (tensor(shape=[1, 1, 2.5, 3]), "shape"),
        (tensor(shape=[1, HUGE, HUGE, 3]), "as large as its shape"),
        (tensor(shape=[1, 2**32, 2**32, 3]), "as large as its shape"),
        (tensor(shape=[1, int("9" * 4000), 2, 3]), "as large as its shape"),
        (tensor(shape=[17, 1, 1, 3]), "16 pictures"),
        (tensor(shape=[HUGE, 1, 2, 3]), "16 pictures"),
        (tensor(shape=[1, 2, 2, 3]), "as large as its shape"),
        (tensor(shape=[1, 1, 1, 3]), "as large as its shape"),
        (tensor(data=[[[[1, 2], [3, 4], [5, 6]]]]), "nested"),
        (tensor(data=[[1, 2, 3, 4, 5, 6]]), "nested"),
        (tensor(data=[1, 2, 3, 4, 5, [6]]), "nested"),
        (tensor(data=[1, 2, 3, 4, 5, -6]), "0 to 255"),
        (tensor(data=[1, 2, 3, 4, 5, 6.0]), "0 to 255"),
        (tensor(data=[1, 2, 3, 4, 5, float("nan")]), "JSON"),
        (tensor(data=[1, 2, 3, 4, 5, float("inf")]), "JSON"),
        (tensor(data=[1, 2, 3, 4, 5, "6"]), "0 to 255"),
        (tensor(data=[1, 2, 3, 4, 5, None]), "0 to 255"),
        (tensor(data=[1, 2, 3, 4, 5, True]), "0 to 255"),
        (tensor(data=[[[[1, 2, 3], [4, 5, 1e2]]]]), "0 to 255"),
        (tensor(data=[1, 2, 3, 4, 5, 256]), "0 to 255"),
        (tensor(data=[1, 2, 3, 4, 5, HUGE]), "0 to 255"),
        (tensor(data={}), "nested"),
        (tensor(data=123456), "nested"),
        (tensor(data="[1,2,3,4,5,6]"), "nested"),
        (tensor(parameters={"binary_data_size": 6}), 'expected "data"'),
        (tensor(data=None), 'expected "data"'),
        (tensor(data=None, parameters={"binary_data_size": None}), 'expected "data"'),
        (tensor(name=None), "name"),
        (tensor(shape=None), "shape"),
        ({"inputs": None}, "array"),
        (tensor(datatype="BYTES", shape=[1], data=[]), "as large as its shape"),
        (tensor(datatype="BYTES", shape=[2], data=["aa"]), "as large as its shape"),
        (tensor(datatype="BYTES", shape=[2, 1], data=[["aa", "aa"]]), "at most length 1"),
        (tensor(datatype="BYTES", shape=[1, 1], data=[[]]), "as large as its shape"),
        (tensor(datatype="BYTES", shape=[1, 1], data=[[["aa"]]]), "str"),
        (tensor(datatype="BYTES", shape=[1], data=[7]), "str"),
        (tensor(datatype="BYTES", shape=[1], data=["@"]), "base64"),
        (tensor(datatype="BYTES", shape=[1], data=["aGVsbG8="]), "not a picture"),
        (tensor(datatype="BYTES", shape=[HUGE], data=["aGVsbG8="]), "16 pictures"),
    ],
)  # fmt: skip
def test_422_for_json_that_is_no_inference(served, body, says):
    assert says in error_of(served.post(infer_route(served), data=json.dumps(body)), 422)


@pytest.mark.parametrize(
    "opening", [b"[", b'{"inputs":', b'{"inputs":[{"data":', b'{"id":"', b'{"inputs":[{"shape":[1']
)
def test_422_for_json_that_goes_on_and_on(served, opening):
    for body in (opening * 200_000, opening + b"[" * 2_000_000, opening + b"1" * 2_000_000):
        error_of(served.post(infer_route(served), data=body), 422)


@pytest.mark.parametrize(
    ("body", "item", "limit"),
    [
        ('{"inputs": [%s]}', '{"name": "image", "datatype": "UINT8", "shape": []}', 8),
        ('{"inputs": [], "outputs": [%s]}', "{}", 8),
        ('{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [%s]}]}', "1", 8),
        ('{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [%s]}]}', '""', 1024),
    ],
)
def test_422_for_a_list_that_is_too_long(served, body, item, limit):
    too_long, as_long_as_may_be = (body % ",".join([item] * count) for count in (limit + 1, limit))
    route, says = infer_route(served), f"at most length {limit}"
    assert says in error_of(served.post(route, data=too_long), 422)
    assert says not in error_of(served.post(route, data=as_long_as_may_be), 422)


def binary_body(datatype: str, shape: list[int], data: bytes, size: int | None = None) -> tuple[bytes, int]:
    """Return a body with a binary tensor that says `size` of itself, by default the truth, and its JSON's length."""
    parameters = {"binary_data_size": len(data) if size is None else size}
    request = {"inputs": [{"name": "image", "datatype": datatype, "shape": shape, "parameters": parameters}]}
    return json.dumps(request).encode() + data, len(json.dumps(request))


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "size", "says"),
    [
        ("UINT8", [1, 1, 2, 3], b"12345", None, "as large as its shape"),
        ("UINT8", [1, 1, 2, 3], b"1234567", None, "as large as its shape"),
        ("UINT8", [1, 2**31, 2**31, 3], b"123456", None, "as large as its shape"),
        ("UINT8", [1, 1, 2, 3], b"123456", 5, "binary_data_size"),
        ("UINT8", [1, 1, 2, 3], b"123456", 7, "binary_data_size"),
        ("UINT8", [1, 1, 2, 3], b"123456", -6, "binary_data_size"),
        ("UINT8", [1, 1, 2, 3], b"123456", HUGE, "binary_data_size"),
        ("UINT8", [1, 1, 2, 3], b"", None, "as large as its shape"),
        ("UINT8", [1, 1, 70_000, 3], bytes(210_000), None, "send it smaller"),
        ("FP32", [1, 1, 2, 3], bytes(24), None, "expected pixels"),
        ("BYTES", [1], b"", None, "as large as its shape"),
        ("BYTES", [1], b"\1\0\0", None, "length"),
        ("BYTES", [1], b"\5\0\0\0four", None, "length"),
        ("BYTES", [1], b"\3\0\0\0four", None, "length"),
        ("BYTES", [1], b"\xff\xff\xff\xfffour", None, "length"),
        ("BYTES", [1], b"\xff\xff\xff\x7ffour", None, "length"),
        ("BYTES", [2], b"\4\0\0\0four", None, "as large as its shape"),
        ("BYTES", [1], b"\4\0\0\0four\4\0\0\0four", None, "length"),
        ("BYTES", [1], b"\0\0\0\0", None, "not a picture"),
        ("BYTES", [16], bytes(64), None, "not a picture"),
    ],
)  # fmt: skip
def test_422_for_binary_tensors_that_lie(served, datatype, shape, data, size, says):
    body, length = binary_body(datatype, shape, data, size)
    headers = {"Inference-Header-Content-Length": str(length)}
    assert says in error_of(served.post(infer_route(served), data=body, headers=headers), 422)


@pytest.mark.parametrize("change", [-1, 1, 1_000, "", "-5", "1e3", "\u00b2".encode("latin-1"), "9" * 19, "9" * 5000])
def test_422_for_a_header_length_that_is_wrong(served, change):
    body, length = binary_body("UINT8", [1, 1, 2, 3], b"123456")
    value = str(length + change) if isinstance(change, int) else change
    error_of(served.post(infer_route(served), data=body, headers={"Inference-Header-Content-Length": value}), 422)


def test_422_for_more_pixels_than_are_taken(tmp_path):
    with ready(tmp_path, MAX_PIXELS="100") as served:
        for side, status in ((10, 200), (11, 422)):
            body = tensor(shape=[1, side, side, 3], data=[0] * side * side * 3)
            assert served.post(infer_route(served), json=body).status_code == status


def test_422_for_a_body_that_is_compressed_and_that_says_so(triton, model):
    with pytest.raises(InferenceServerException, match="compressed") as raised:
        triton.infer(model, [as_input("UINT8", True, 0)], request_compression_algorithm="gzip")
    assert raised.value.status() == "422"


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd"])
def test_422_for_a_body_that_says_it_is_compressed(served, encoding):
    for path in ("/", "/invocations"):
        refused = served.post(path, data=gzip.compress(PICTURES[0]), headers=JPEG | {"Content-Encoding": encoding})
        assert (refused.status_code, refused.json()["error"]["type"]) == (422, "invalid_input")
        assert "compressed" in refused.json()["error"]["message"]
        assert served.post(path, data=PICTURES[0], headers=JPEG | {"Content-Encoding": "identity"}).ok


def test_other_routes_of_v2_are_refused_in_its_form(served):
    for response, status in (
        (served.get("/v2/nowhere"), 404),
        (served.get(infer_route(served)), 405),
        (served.post("/v2/models//infer", json=tensor()), 404),
    ):
        assert "GET /v2, /v2/health/live" in error_of(response, status)
