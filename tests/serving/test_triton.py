"""The Open Inference Protocol v2 with Triton's own client."""

import base64
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from tests.server_process import Served
from tests.serving.inferences import IMAGES, PIXELS, infer_route, tensor


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
    """The probabilities of both images by POST /."""
    images = [base64.b64encode(image).decode() for image in IMAGES]
    results = served.post(json={"images": images, "probabilities": True}).json()["results"]
    return np.array([result["probabilities"] for result in results], np.float32)


def as_input(datatype: str, binary: bool, *which: int) -> InferInput:
    """Return the images of those numbers as Triton's client sends them."""
    if datatype == "UINT8":
        array = np.stack([PIXELS[n] for n in which])
    else:  # in JSON, bytes must be encoded by the caller
        array = np.array([IMAGES[n] if binary else base64.b64encode(IMAGES[n]) for n in which], object)
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
    for n in range(len(IMAGES)):
        result = triton.infer(model, [as_input(datatype, binary, n)], outputs=outputs, request_id=f"call {n}")
        assert result.get_response()["id"] == f"call {n}"
        assert result.get_response()["model_name"] == model
        [output] = result.get_response()["outputs"]
        assert ("data" in output) == (binary_answer is False)
        got = result.as_numpy("probabilities")
        assert got.dtype == np.float32 and got.shape == (1, 1000)
        np.testing.assert_array_equal(got[0], wanted[n])


def test_triton_gets_several_images_in_order(triton, model, wanted):
    result = triton.infer(model, [as_input("BYTES", True, 1, 0, 1)])
    np.testing.assert_allclose(result.as_numpy("probabilities"), wanted[[1, 0, 1]], atol=1e-3)
    same_size = np.repeat(PIXELS[0][None], 3, axis=0)
    several = InferInput("image", list(same_size.shape), "UINT8")
    several.set_data_from_numpy(same_size)
    np.testing.assert_allclose(triton.infer(model, [several]).as_numpy("probabilities"), wanted[[0, 0, 0]], atol=1e-3)


@pytest.mark.parametrize("binary", [True, False])
def test_accepts_files_with_mlservers_extra_dimension(triton, model, wanted, binary):
    flat = as_input("BYTES", binary, 1, 0)
    result = triton.infer(model, [flat.set_shape([2, 1])])
    np.testing.assert_allclose(result.as_numpy("probabilities"), wanted[[1, 0]], atol=1e-3)


def test_accepts_files_nested_like_that_shape(served, wanted):
    nested = [[base64.b64encode(IMAGES[n]).decode()] for n in (1, 0)]
    body = tensor(datatype="BYTES", shape=[2, 1], data=nested)
    [output] = served.post(infer_route(served), json=body).json()["outputs"]
    assert output["shape"] == [2, 1000]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), wanted[[1, 0]], atol=1e-3)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_gets_class_names(triton, model, wanted, binary):
    outputs = [InferRequestedOutput("probabilities", binary_data=binary, class_count=3)]
    result = triton.infer(model, [as_input("BYTES", True, 0, 1)], outputs=outputs)
    assert result.get_output("probabilities")["datatype"] == "BYTES"
    named = result.as_numpy("probabilities")
    assert named.shape == (2, 3)
    text = named[0][0].decode() if binary else named[0][0]
    probability, class_id, name = text.split(":")
    assert (class_id, name) == ("0", "tench")
    assert float(probability) == pytest.approx(wanted[0][0], abs=1e-3)


def test_triton_gets_the_metadata(triton, model):
    assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready(model)
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    assert triton.get_model_metadata(model) == {
        "name": model,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 1000]}],
    }


def test_triton_gets_404_for_an_unknown_model(triton, model):
    assert not triton.is_model_ready("another")
    for ask in (triton.get_model_metadata, lambda name: triton.infer(name, [as_input("BYTES", True, 0)])):
        with pytest.raises(InferenceServerException, match=f"unknown model.* {model}") as raised:
            ask("another")
        assert raised.value.status() == "404"


def test_triton_gets_404_for_an_unknown_version(triton, model, wanted):
    assert triton.is_model_ready(model, "1") and not triton.is_model_ready(model, "2")
    assert triton.get_model_metadata(model, "1") == triton.get_model_metadata(model)
    result = triton.infer(model, [as_input("BYTES", True, 0)], model_version="1")
    assert result.get_response()["model_version"] == "1"
    np.testing.assert_array_equal(result.as_numpy("probabilities")[0], wanted[0])
    for ask in (
        triton.get_model_metadata,
        lambda name, number: triton.infer(name, [as_input("BYTES", True, 0)], number),
    ):
        with pytest.raises(InferenceServerException, match="versions/1") as raised:
            ask(model, "2")
        assert raised.value.status() == "404"


# -- what is refused -------------------------------------------------------------------------------------------------


def test_triton_gets_422_for_a_compressed_body(triton, model):
    with pytest.raises(InferenceServerException, match="compressed") as raised:
        triton.infer(model, [as_input("UINT8", True, 0)], request_compression_algorithm="gzip")
    assert raised.value.status() == "422"
