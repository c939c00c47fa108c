"""open_inference.py through real sockets: valid and invalid requests."""

import json

import pytest

from tests.server_process import ready
from tests.serving.inferences import PIXELS, error_of, infer_route, tensor


def test_returns_the_id(served, route):
    answers = [served.post(route, json=tensor() | {"id": text}).json() for text in ("", "7")]
    assert [answer["id"] for answer in answers] == ["", "7"]
    assert "id" not in served.post(route, json=tensor()).json()


def test_accepts_numbers_however_they_are_nested(served, route):
    pixels = PIXELS[0][:140, :130]
    shape = [1, *pixels.shape]
    flat, *nested = (
        served.post(route, data=json.dumps(tensor(shape=shape, data=data), indent=1)).json()
        for data in (pixels.ravel().tolist(), [pixels.tolist()], pixels.tolist(), pixels.reshape(-1, 3).tolist())
    )
    assert nested == [flat] * 3
    assert sum(flat["outputs"][0]["data"]) == pytest.approx(1, abs=1e-3)
    assert flat != served.post(route, json=tensor(shape=shape, data=pixels[::-1].ravel().tolist())).json()


def test_treats_null_as_not_set(served, route):
    plain = served.post(route, json=tensor()).json()
    nothing = {"binary_data": None, "classification": None}
    for output in (None, [{"name": None, "parameters": None}], [{"name": "probabilities", "parameters": nothing}]):
        for parameters in (None, {"binary_data_output": None}):
            body = tensor(parameters=None) | {"id": None, "parameters": parameters, "outputs": output}
            assert served.post(route, json=body).json() == plain
    body = json.dumps(tensor(data=None, parameters={"binary_data_size": 6})).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    binary = served.post(route, data=body + bytes(range(1, 7)), headers=headers)
    assert binary.json() == plain


# -- what is refused -------------------------------------------------------------------------------------------------

HUGE = 10**40


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "missing required field `inputs`"),
        ([], "got `array`"),
        ({"inputs": []}, "`array` of length 1"),
        (tensor(name="another"), "inputs[0].name"),
        ({"inputs": tensor()["inputs"] * 2}, "`array` of length 1"),
        (tensor() | {"outputs": [{"name": "another"}]}, "$[0].name"),
        (tensor() | {"outputs": [{"name": "probabilities"}] * 2}, "length <= 1"),
        (tensor() | {"outputs": [{"name": "probabilities", "parameters": {"classification": 0}}]}, "classification"),
        (tensor() | {"outputs": [{"name": "probabilities", "parameters": {"binary_data": 1}}]}, "binary_data"),
        (tensor() | {"id": 7}, "$.id"),
        (tensor(datatype="FP32"), "inputs[0].datatype"),
        (tensor(datatype="BYTES"), "not a shape for BYTES"),
        (tensor(datatype="BYTES", shape=[]), "not a shape for BYTES"),
        (tensor(datatype="BYTES", shape=[1, 2]), "not a shape for BYTES"),
        (tensor(datatype="BYTES", shape=[1, 1, 1]), "not a shape for BYTES"),
        (tensor(shape=[]), "not a shape for UINT8"),
        (tensor(shape=[6]), "not a shape for UINT8"),
        (tensor(shape=[1, 1, 2, 3, 1]), "not a shape for UINT8"),
        (tensor(shape=[1, 1, 6, 1]), "not a shape for UINT8"),
        (tensor(shape=[-1, -1, 2, 3]), "`int` >= 1 - at `$[0]`"),
        (tensor(shape=[1, 0, 2, 3]), "`int` >= 1 - at `$[1]`"),
        (tensor(shape=[1, 1, 2.5, 3]), "at `$"),
        (tensor(shape=[1, HUGE, HUGE, 3]), "size of its shape"),
        (tensor(shape=[1, 2**32, 2**32, 3]), "size of its shape"),
        (tensor(shape=[1, int("9" * 4000), 2, 3]), "size of its shape"),
        (tensor(shape=[17, 1, 1, 3]), "limit is 16"),
        (tensor(shape=[HUGE, 1, 2, 3]), "limit is 16"),
        (tensor(shape=[1, 2, 2, 3]), "size of its shape"),
        (tensor(shape=[1, 1, 1, 3]), "size of its shape"),
        (tensor(data=[1, 2, 3, 4, 5, -6]), ">= 0"),
        (tensor(data=[1, 2, 3, 4, 5, 6.0]), "Expected `int`, got"),
        (tensor(data=[1, 2, 3, 4, 5, float("nan")]), "JSON"),
        (tensor(data=[1, 2, 3, 4, 5, float("inf")]), "JSON"),
        (tensor(data=[1, 2, 3, 4, 5, "6"]), "Expected `int`, got"),
        (tensor(data=[1, 2, 3, 4, 5, None]), "Expected `int`, got"),
        (tensor(data=[1, 2, 3, 4, 5, True]), "Expected `int`, got"),
        (tensor(data=[[[[1, 2, 3], [4, 5, 1e2]]]]), "Expected `int`, got"),
        (tensor(data=[1, 2, 3, 4, 5, 256]), "<= 255"),
        (tensor(data=[1, 2, 3, 4, 5, HUGE]), "<= 255"),
        (tensor(data={}), "Expected `int`, got"),
        (tensor(data=123456), "<= 255"),
        (tensor(data="[1,2,3,4,5,6]"), "Expected `int`, got"),
        (tensor(parameters={"binary_data_size": 6}), 'expected either'),
        (tensor(data=None), 'expected either'),
        (tensor(data=None, parameters={"binary_data_size": None}), 'expected either'),
        (tensor(name=None), "inputs[0].name"),
        (tensor(shape=None), "got `null`"),
        ({"inputs": None}, "got `null`"),
        (tensor(datatype="BYTES", shape=[1], data=[]), "size of its shape"),
        (tensor(datatype="BYTES", shape=[2], data=["aa"]), "size of its shape"),
        (tensor(datatype="BYTES", shape=[2, 1], data=[["aa", "aa"]]), "of length 1"),
        (tensor(datatype="BYTES", shape=[1, 1], data=[[]]), "of length 1"),
        (tensor(datatype="BYTES", shape=[1, 1], data=[[["aa"]]]), "str"),
        (tensor(datatype="BYTES", shape=[1], data=[7]), "str"),
        (tensor(datatype="BYTES", shape=[1], data=["@"]), "base64"),
        (tensor(datatype="BYTES", shape=[1], data=["aGVsbG8="]), "send JPEG"),
        (tensor(datatype="BYTES", shape=[HUGE], data=["aGVsbG8="]), "limit is 16"),
    ],
)  # fmt: skip
def test_422_for_invalid_inferences(served, route, body, says):
    assert says in error_of(served.post(route, data=json.dumps(body)), 422)


@pytest.mark.parametrize(
    "opening", [b"[", b'{"inputs":', b'{"inputs":[{"data":', b'{"id":"', b'{"inputs":[{"shape":[1']
)
def test_422_for_endless_json(served, route, opening):
    for body in (opening * 200_000, opening + b"[" * 2_000_000, opening + b"1" * 2_000_000):
        error_of(served.post(route, data=body), 422)


@pytest.mark.parametrize(
    "body",
    [
        tensor() | {"outputs": [{}] * 3_000},
        tensor(shape=[1] * 3_000),
        tensor(datatype="BYTES", shape=[1], data=[""] * 3_000),
    ],
)
def test_422_for_a_list_that_is_too_long(served, route, body):
    assert "too many items" in error_of(served.post(route, json=body), 422)


def binary_body(datatype: str, shape: list[int], data: bytes, size: int | None = None) -> tuple[bytes, int]:
    """Return a body with a tensor that claims to have `size` bytes (default: the truth), and the JSON's length."""
    parameters = {"binary_data_size": len(data) if size is None else size}
    request = {"inputs": [{"name": "image", "datatype": datatype, "shape": shape, "parameters": parameters}]}
    return json.dumps(request).encode() + data, len(json.dumps(request))


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "size", "says"),
    [
        ("UINT8", [1, 1, 2, 3], b"12345", None, "size of its shape"),
        ("UINT8", [1, 1, 2, 3], b"1234567", None, "size of its shape"),
        ("UINT8", [1, 2**31, 2**31, 3], b"123456", None, "size of its shape"),
        ("UINT8", [1, 1, 2, 3], b"123456", 5, "binary_data_size"),
        ("UINT8", [1, 1, 2, 3], b"123456", 7, "binary_data_size"),
        ("UINT8", [1, 1, 2, 3], b"123456", -6, "binary_data_size"),
        ("UINT8", [1, 1, 2, 3], b"123456", HUGE, "binary_data_size"),
        ("UINT8", [1, 1, 2, 3], b"", None, "size of its shape"),
        ("UINT8", [1, 1, 70_000, 3], bytes(210_000), None, "resize it"),
        ("FP32", [1, 1, 2, 3], bytes(24), None, "inputs[0].datatype"),
        ("BYTES", [1], b"", None, "length"),
        ("BYTES", [1], b"\1\0\0", None, "length"),
        ("BYTES", [1], b"\5\0\0\0four", None, "length"),
        ("BYTES", [1], b"\3\0\0\0four", None, "length"),
        ("BYTES", [1], b"\xff\xff\xff\xfffour", None, "length"),
        ("BYTES", [1], b"\xff\xff\xff\x7ffour", None, "length"),
        ("BYTES", [2], b"\4\0\0\0four", None, "length"),
        ("BYTES", [1], b"\4\0\0\0four\4\0\0\0four", None, "length"),
        ("BYTES", [1], b"\0\0\0\0", None, "send JPEG"),
        ("BYTES", [16], bytes(64), None, "send JPEG"),
    ],
)  # fmt: skip
def test_422_for_inconsistent_binary_tensors(served, route, datatype, shape, data, size, says):
    body, length = binary_body(datatype, shape, data, size)
    headers = {"Inference-Header-Content-Length": str(length)}
    assert says in error_of(served.post(route, data=body, headers=headers), 422)


@pytest.mark.parametrize("change", [-1, 1, 1_000, "", "-5", "1e3", "\u00b2".encode("latin-1"), "9" * 19, "9" * 5000])
def test_422_for_a_wrong_header_length(served, route, change):
    body, length = binary_body("UINT8", [1, 1, 2, 3], b"123456")
    value = str(length + change) if isinstance(change, int) else change
    error_of(served.post(route, data=body, headers={"Inference-Header-Content-Length": value}), 422)


def test_422_for_pixels_that_need_too_much_memory(tmp_path):
    with ready(tmp_path, MAX_IMAGE_MB="1") as served:
        for width, status in ((1_000, 200), (2_500, 422)):
            body = tensor(shape=[1, 1, width, 3], data=[0] * width * 3)
            assert served.post(infer_route(served), json=body).status_code == status


def test_errors_under_v2_have_its_form(served, route):
    for response, status in (
        (served.get("/v2/nowhere"), 404),
        (served.get(route), 405),
        (served.post("/v2/models//infer", json=tensor()), 404),
    ):
        assert "GET /v2, /v2/health/live" in error_of(response, status)
