"""What platforms other than Banana ask a container for, in front of the same app.py, queue and limits.

SageMaker and RunPod ask for /ping; KServe and the clients of Triton and MLServer for the Open Inference Protocol v2.
"""

from sanic import Blueprint, HTTPResponse, Request

from runtime.settings import ModelSettings, read
from serving import calls, open_inference
from serving.bodies import turn
from serving.calls import Refusal, call, require_healthy, require_ready, respond

PROBES = ("/ping", "/v2/health/live", "/v2/health/ready")
HERE = "GET /v2, /v2/health/live, /v2/health/ready, /v2/models/<name>[/versions/1][/ready], or POST to .../infer there"
GET = {"methods": ["GET", "HEAD"], "ignore_body": True, "unquote": True}
MAX_IMAGES = read(ModelSettings).MAX_IMAGES
JSON_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON in front of binary tensors

routes = Blueprint("platforms")


@routes.route("/ping", **GET)
async def ping(request: Request) -> HTTPResponse:
    """200 while the model answers; 204 while it loads, as RunPod has it and SageMaker does not mind; or 503."""
    lifecycle = request.app.ctx.state.lifecycle
    if not lifecycle.ready and not lifecycle.stopping:
        return HTTPResponse(status=204)
    require_healthy(request)
    return respond({"state": "healthy"})


@routes.post("/invocations", stream=True)
async def invocations(request: Request) -> HTTPResponse:
    """Do what POST / does."""
    return await calls.run_inference(request)


def is_v2(path: str) -> bool:
    """Return whether the path is one of v2's, which has its own form of an error."""
    return path == "/v2" or path.startswith("/v2/")


@routes.route("/v2", **GET)
async def server_metadata(request: Request) -> HTTPResponse:
    """Which server this is, and what of v2 it has beside the core."""
    return respond(
        {
            "name": "classifier",
            "version": status_of(request).get("version", ""),
            "extensions": open_inference.EXTENSIONS,
        }
    )


@routes.route("/v2/health/live", **GET)
async def live(request: Request) -> HTTPResponse:
    """200 from the moment that the server listens."""
    return respond({"live": True})


@routes.route("/v2/health/ready", **GET)
async def ready(request: Request) -> HTTPResponse:
    """200 while the model answers, else 503."""
    require_healthy(request)
    return respond({"ready": True})


@routes.route("/v2/models/<name>", **GET)
@routes.route("/v2/models/<name>/versions/<version>", name="version_metadata", **GET)
async def model_metadata(request: Request, name: str, version: str | None = None) -> HTTPResponse:
    """What the model takes and gives."""
    require_model(request, name, version)
    return respond(open_inference.model_metadata(name, status_of(request)["classes"]))


@routes.route("/v2/models/<name>/ready", **GET)
@routes.route("/v2/models/<name>/versions/<version>/ready", name="version_ready", **GET)
async def model_ready(request: Request, name: str, version: str | None = None) -> HTTPResponse:
    """200 while the model answers, else 503."""
    require_healthy(request)
    require_model(request, name, version)
    return respond({"name": name, "ready": True})


@routes.post("/v2/models/<name>/infer", stream=True, unquote=True)
@routes.post("/v2/models/<name>/versions/<version>/infer", name="version_infer", stream=True, unquote=True)
async def infer(request: Request, name: str, version: str | None = None) -> HTTPResponse:
    """Classify pixels or picture files."""
    require_model(request, name, version)
    model = {"model_name": name} | ({"model_version": version} if version else {})

    def work(body: bytes) -> tuple[dict, HTTPResponse]:
        with turn(body):
            inference = open_inference.read(body, request.headers.get(JSON_LENGTH), MAX_IMAGES)
        inputs = {"images": inference.images, "probabilities": not inference.classes, "top_k": inference.classes or 1}
        answer = request.app.ctx.state.backend.inference(inputs)
        response, json_length = open_inference.write(inference, model, answer["results"])
        if json_length is None:
            return answer, HTTPResponse(response, content_type="application/json")
        headers = {JSON_LENGTH: str(json_length)}
        return answer, HTTPResponse(response, 200, headers, "application/octet-stream")

    return await call(request, work)


def require_model(request: Request, name: str, version: str | None) -> None:
    """Raise Refusal unless the model is loaded and bears that name, and the version where one is given."""
    require_ready(request)
    model = status_of(request)["model"]
    if name != model:
        raise Refusal(f"there is no such model here: the one that is here is {model}", 404)
    if version not in (None, open_inference.VERSION):
        raise Refusal(f"there is no such version here: the one of {model} is {open_inference.VERSION}", 404)


def status_of(request: Request) -> dict:
    """Return what the backend says of itself."""
    return request.app.ctx.state.backend.status()
