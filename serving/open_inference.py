"""The Open Inference Protocol v2 (KServe, Triton, MLServer) with binary tensors and classification, for one model."""

import re
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from sanic import Blueprint, HTTPResponse, Request
from sanic.exceptions import NotFound
from sanic.response import json

from runtime.base64_text import decode_base64
from runtime.errors import InvalidInput
from runtime.settings import ModelSettings, read
from serving.calls import Decoded, handle
from serving.inputs import NULL, decode_list
from serving.middleware import GET

MAX_IMAGES = read(ModelSettings).MAX_IMAGES
JSON_LENGTH = "Inference-Header-Content-Length"  # the number of bytes of JSON before binary tensors
EXPECTED = 'expected input "image", UINT8 [images, height, width, 3] or BYTES [images], and output "probabilities"'
PIECE = re.compile(rb"[^,]+(?:,[^,]+){,16383}")  # at most 16,384 numbers per decode call, which holds the GIL
Positive = Annotated[int, msgspec.Meta(ge=1)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]

routes = Blueprint("open_inference")


@routes.route("/v2", **GET)
async def server_metadata(request: Request) -> HTTPResponse:
    """The server's name and version, and the extensions of v2 that it supports."""
    request.app.ctx.lifecycle.require_ready()
    version = request.app.ctx.backend.status().get("version", "")
    return json({"name": "classifier", "version": version, "extensions": ["binary_tensor_data", "classification"]})


@routes.route("/v2/health/live", **GET)
async def live(request: Request) -> HTTPResponse:
    """200 as soon as the server listens."""
    return json({"live": True})


@routes.route("/v2/models/<name>", unquote=True, **GET)
@routes.route("/v2/models/<name>/versions/1", name="version_metadata", unquote=True, **GET)
async def model_metadata(request: Request, name: str) -> HTTPResponse:
    """The model's tensors. The protocol cannot express that the input may also be image files."""
    model = require_model(request, name)
    inputs = [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    outputs = [{"name": "probabilities", "datatype": "FP32", "shape": [-1, model["classes"]]}]
    return json({"name": name, "versions": ["1"], "platform": "onnxruntime_onnx", "inputs": inputs, "outputs": outputs})


@routes.route("/v2/health/ready", **GET)
@routes.route("/v2/models/<name>/ready", name="model_ready", unquote=True, **GET)
@routes.route("/v2/models/<name>/versions/1/ready", name="version_ready", unquote=True, **GET)
async def ready(request: Request, name: str | None = None) -> HTTPResponse:
    """200 while the model works, otherwise 503."""
    await request.app.ctx.lifecycle.require_healthy()
    if name is None:
        return json({"ready": True})
    require_model(request, name)
    return json({"name": name, "ready": True})


@routes.post("/v2/models/<name>/infer", stream=True, unquote=True)
@routes.post("/v2/models/<name>/versions/1/infer", name="version_infer", stream=True, unquote=True)
async def infer(request: Request, name: str) -> HTTPResponse:
    """Classify pixels or image files."""
    require_model(request, name)
    return await handle(request, partial(decode_request, name, request.headers))


def require_model(request: Request, name: str) -> dict:
    """Return the backend's status. Raises NotFound if this is not its model, or Unavailable."""
    request.app.ctx.lifecycle.require_ready()
    status = request.app.ctx.backend.status()
    if name != status["model"]:
        raise NotFound(f"unknown model; this server serves {status['model']}")
    return status


class _Parameters(msgspec.Struct):
    """The parameters of an input, an output or the whole request."""

    binary_data_size: int | None = None
    binary_data: bool | None = None
    classification: Positive | None = None
    binary_data_output: bool | None = None


class _Input(msgspec.Struct):
    name: Literal["image"]
    datatype: Literal["UINT8", "BYTES"]
    shape: msgspec.Raw
    data: msgspec.Raw = NULL  # if it follows the JSON
    parameters: _Parameters | None = None


class _Output(msgspec.Struct):
    name: Literal["probabilities"] | None = None
    parameters: _Parameters | None = None


class _Request(msgspec.Struct):
    """The fields of a request that are read; others are skipped without being built in memory."""

    inputs: tuple[_Input]
    outputs: msgspec.Raw = NULL
    id: str | None = None
    parameters: _Parameters | None = None


def decode_request(model: str, headers: Mapping[str, str], body: bytes) -> Decoded:
    """Decode the body of an inference request: JSON, then any binary data. Raises InvalidInput."""
    json_length = headers.get(JSON_LENGTH, str(len(body)))
    if not re.fullmatch("[0-9]{1,19}", json_length) or int(json_length) > len(body):
        raise InvalidInput(f"{JSON_LENGTH} must be the length of the JSON that the body begins with")
    view, end = memoryview(body), int(json_length)
    try:
        request = msgspec.json.decode(view[:end], type=_Request)
        outputs = decode_list(request.outputs, Annotated[list[_Output], msgspec.Meta(max_length=1)] | None)
        images = _images(request.inputs[0], view[end:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"not an inference request ({error}): {EXPECTED}") from error
    wanted = (outputs[0].parameters if outputs else None) or _Parameters()
    default = (request.parameters or _Parameters()).binary_data_output  # of outputs that do not choose themselves
    is_binary = bool(default if wanted.binary_data is None else wanted.binary_data)
    fields = {"model_name": model, "model_version": "1"} | ({} if request.id is None else {"id": request.id})
    inputs = {"images": images, "probabilities": not wanted.classification, "top_k": wanted.classification or 1}
    return inputs, partial(_encode, fields, is_binary)


def _encode(fields: dict, is_binary: bool, answer: dict) -> HTTPResponse:
    """Return the response: all probabilities, or the best classes as texts, in the JSON or as binary data after it."""
    results = answer["results"]
    if "probabilities" in results[0]:
        data: list[Any] = [probability for result in results for probability in result["probabilities"]]
        datatype, binary = "FP32", np.array(data, "<f4").tobytes()
    else:
        data = [f"{p['probability']:f}:{p['class_id']}:{p['class_name']}" for r in results for p in r["predictions"]]
        datatype, binary = "BYTES", b"".join(len(text).to_bytes(4, "little") + text for text in map(str.encode, data))
    form = {"parameters": {"binary_data_size": len(binary)}} if is_binary else {"data": data}
    shape = [len(results), len(data) // len(results)]
    output = {"name": "probabilities", "datatype": datatype, "shape": shape} | form
    text = msgspec.json.encode(fields | {"outputs": [output]})
    if is_binary:
        return HTTPResponse(text + binary, 200, {JSON_LENGTH: str(len(text))}, "application/octet-stream")
    return HTTPResponse(text, content_type="application/json")


def _images(tensor: _Input, binary: memoryview) -> list[np.ndarray] | list[bytes]:
    shape = decode_list(tensor.shape, list[Positive])
    is_pixels = tensor.datatype == "UINT8"
    fits = shape[3:] == [3] if is_pixels else len(shape) == 1 or shape[1:] == [1]
    if not fits:
        raise InvalidInput(f"not a shape for {tensor.datatype}: {EXPECTED}")
    if shape[0] > MAX_IMAGES:
        raise InvalidInput(f"too many images; the limit is {MAX_IMAGES} per request")
    size = (tensor.parameters or _Parameters()).binary_data_size
    in_json, in_binary = tensor.data != NULL, size is not None
    if in_json == in_binary or len(binary) != (size or 0):
        raise InvalidInput('expected either "data", or "binary_data_size" bytes of binary data after the JSON')
    data: Any
    if is_pixels:
        data = _pixels(bytes(tensor.data)) if in_json else binary
    elif in_json:
        texts = decode_list(tensor.data, list[str | tuple[str]])
        data = [decode_base64(text if isinstance(text, str) else text[0]) for text in texts]
    else:
        data = _unpack(binary, shape[0])
    if len(data) != prod(shape):
        raise InvalidInput("the data must have the size of its shape")
    return list(np.frombuffer(data, np.uint8).reshape(shape)) if is_pixels else data


def _pixels(data: bytes) -> bytearray:
    """Return the pixels in valid JSON: numbers in one list, or in nested ones, in their order."""
    pixels = bytearray()  # decoded in pieces: lists of Python take many times the memory of their text
    for numbers in PIECE.finditer(data.translate(None, b"[]")):
        pixels += bytes(msgspec.json.decode(b"[%b]" % numbers[0], type=list[Byte]))
    return pixels


def _unpack(binary: memoryview, count: int) -> list[bytes]:
    """Return the files in binary data, in which each follows its length of four bytes."""
    files, end = [], 0
    for _ in range(count):
        start = end + 4
        end = start + int.from_bytes(binary[end:start], "little")
        files.append(bytes(binary[start:end]))
    if end != len(binary):
        raise InvalidInput(f"the binary data must be {count} files, each after its length of four bytes")
    return files
