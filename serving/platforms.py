"""The routes of other platforms, with the same backend, queue and limits.

Banana's Potassium has a status, SageMaker and RunPod use /ping; KServe and the clients of Triton and MLServer use the
Open Inference Protocol v2.
"""

from functools import partial
from time import monotonic
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.exceptions import NotFound
from sanic.response import json

from serving.calls import handle, run_inference
from serving.lifecycle import State
from serving.open_inference import decode_request

PROBES = ("/ping", "/v2/health/live", "/v2/health/ready")
V2_ROUTES = "GET /v2, /v2/health/live, /v2/health/ready, /v2/models/<name>[/versions/1][/ready], or POST .../infer"
# With error_format, Sanic does not search the source of each route for one when it starts.
GET: dict[str, Any] = {"methods": ["GET", "HEAD"], "ignore_body": True, "error_format": "json"}

routes = Blueprint("platforms")


@routes.route("/ping", **GET)
async def ping(request: Request) -> HTTPResponse:
    """200 while the model works; 204 while it loads, as RunPod expects and SageMaker accepts; otherwise 503."""
    lifecycle = request.app.ctx.lifecycle
    if lifecycle.state is State.LOADING:
        return HTTPResponse(status=204)
    await lifecycle.require_healthy()
    return json({"state": "healthy"})


@routes.route("/_k/status", **GET)
@routes.route("/__status__", name="status_alias", **GET)
async def status(request: Request) -> HTTPResponse:
    """Potassium's status: whether a request would start at once, the number processed, and ms of idleness or work."""
    queue = request.app.ctx.queue
    is_ready = request.app.ctx.lifecycle.state is State.READY
    since_ms = int((monotonic() - queue.last_change) * 1e3)
    idle_ms, working_ms = (0, since_ms) if queue.pending else (since_ms, 0)
    is_free = is_ready and len(queue.pending) < queue.threads
    fields = {"gpu_available": is_free, "sequence_number": queue.finished}
    return json(fields | {"idle_time": idle_ms, "inference_time": working_ms})


@routes.post("/invocations", stream=True)
async def invocations(request: Request) -> HTTPResponse:
    """The same as POST /."""
    return await run_inference(request)


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
    fields = {"name": name, "versions": ["1"], "platform": "onnxruntime_onnx"}
    return json(fields | {"inputs": inputs, "outputs": outputs})


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
