"""openapi.json describes the server: every route, and the schema of every response."""

import base64
import json

import pytest
import requests
from jsonschema import Draft202012Validator

import app
from server import server
from tests.server_process import DEADLINE_S, ROOT, TENCH, Served, serving

API = json.loads((ROOT / "serving" / "openapi.json").read_text())
IMAGE = base64.b64encode(TENCH.read_bytes()).decode()
INFERENCE = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [IMAGE]}]}
BEST = {"name": "probabilities", "parameters": {"classification": 3}}
METHODS = ("get", "post")


def resolved(node: dict) -> dict:
    """Return the target of a $ref, or the node itself."""
    while "$ref" in node:
        target = API
        for name in node["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        node = target
    return node


def fits(value: object, schema: dict) -> bool:
    """Return whether the value fits the schema."""
    return Draft202012Validator(schema | {"components": API["components"]}).is_valid(value)


def model_of(served: Served) -> str:
    """Return the name of the server's model."""
    return served.get("/healthcheck").json()["model"]


def assert_promised(response, path: str) -> dict | str:
    """Fail unless serving/openapi.json describes this response: its status, headers, type and body. Return the body."""
    method = response.request.method.lower().replace("head", "get")
    promised = resolved(API["paths"][path][method]["responses"][str(response.status_code)])
    for name in ("X-Request-ID", "Retry-After"):
        assert (name in response.headers) == (name in promised["headers"])
    if "content" not in promised or response.request.method == "HEAD":
        assert response.content == b""
        return ""
    kind = response.headers["Content-Type"].partition(";")[0]
    body = response.json() if kind == "application/json" else response.text
    assert fits(body, promised["content"][kind]["schema"]), body
    return body


def test_describes_every_route_and_no_other():
    routes = {(f"/{route.path}", method.lower()) for route in server.router.routes for method in route.methods}
    # The description says once that every GET is a HEAD too, and that a model's routes also exist with its version.
    routes = {(path, method) for path, method in routes if method != "head" and "/versions/" not in path}
    routes = {(path, method) for path, method in routes if not path.startswith("/page/")}  # for the page alone
    described = {(path, method) for path, methods in API["paths"].items() for method in methods if method in METHODS}
    assert routes == {(path.replace("{", "<").replace("}", ":str>"), method) for path, method in described}


def test_every_component_exists_and_is_used():
    references = set(json.dumps(API).split('"$ref": "#/components/')[1:])
    used = {reference.partition('"')[0] for reference in references}
    there = {f"{kind}/{name}" for kind, parts in API["components"].items() for name in parts if kind[:8] != "security"}
    assert used == there


def test_has_what_generators_and_linters_need():
    operations = [methods[method] for methods in API["paths"].values() for method in METHODS if method in methods]
    assert all(operation["summary"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert API["servers"] and API["info"]["license"]
    for text in json.dumps(API).split('"oneOf": [')[1:]:  # generators turn alternatives without properties into Any
        alternatives = [resolved(option) for option in json.loads(f"[{text.partition(']')[0]}]")]
        assert all(option["type"] == "object" and option["properties"] for option in alternatives)


def examples(path: str) -> list[dict]:
    """Return the examples of JSON bodies for the path."""
    content = resolved(API["paths"][path]["post"]["requestBody"])["content"]["application/json"]
    values = [example["value"] for example in content["examples"].values()]
    assert all(fits(value, content["schema"]) for value in values)
    return values


@pytest.mark.parametrize("path", [path for path in API["paths"] if "requestBody" in API["paths"][path].get("post", {})])
def test_the_examples_work(served, path):
    names = {example["value"] for example in API["components"]["parameters"]["Model"]["examples"].values()}
    assert model_of(served) in names
    for body in examples(path):
        for asked in (path.format(name=model_of(served)), path.replace("{name}", f"{model_of(served)}/versions/1")):
            response = served.post(asked, json=body)
            assert response.status_code == 200, response.text
            assert_promised(response, path)


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        ({"image": "aa"}, True),
        ({"images": ["aa"]}, True),
        ({"image": "aa", "images": None, "top_k": None}, True),
        ({"image": None, "images": ["aa"], "probabilities": None}, True),
        ({"image": "aa", "images": ["aa"]}, False),
        ({"image": None}, False),
        ({}, False),
    ],
)
def test_requires_either_image_or_images(body, is_one):
    schema = API["components"]["requestBodies"]["Images"]["content"]["application/json"]["schema"]
    assert fits(body, schema) == is_one


def test_has_the_version_of_the_server():
    assert API["info"]["version"] == app.VERSION


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (200, {"json": {"image": IMAGE}}),
        (200, {"json": {"images": [IMAGE, IMAGE], "top_k": 1, "probabilities": True}}),
        (200, {"data": TENCH.read_bytes(), "params": {"probabilities": "true"}}),
        (200, {"files": {"image": TENCH.read_bytes()}}),
        (422, {"json": {}}),
        (413, {"data": b"A" * 21_000_000}),
    ],
)
def test_classification_is_as_described(served, status, arguments):
    response = served.post(**arguments)
    assert response.status_code == status
    assert_promised(response, "/")


@pytest.mark.parametrize("path", [path for path in API["paths"] if "get" in API["paths"][path]])
def test_get_and_head_are_as_described(served, path):
    model = model_of(served)
    for asked in (path.format(name=model), path.replace("{name}", f"{model}/versions/1")):
        assert_promised(served.get(asked), path)
        assert_promised(requests.head(served.url + asked, timeout=DEADLINE_S), path)


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (200, {"json": INFERENCE}),
        (200, {"json": INFERENCE | {"id": "7", "outputs": [BEST]}}),
        (200, {"json": INFERENCE | {"parameters": {"binary_data_output": True}}}),
        (422, {"json": {}}),
        (413, {"data": b"A" * 21_000_000}),
    ],
)
def test_inferences_are_as_described(served, status, arguments):
    response = served.post(f"/v2/models/{model_of(served)}/infer", **arguments)
    assert response.status_code == status
    assert_promised(response, "/v2/models/{name}/infer")


@pytest.mark.parametrize("path", [path for path in API["paths"] if "{name}" in path and "get" in API["paths"][path]])
def test_unknown_models_are_as_described(served, path):
    for name in ("another", "another/versions/1", f"{model_of(served)}/versions/2"):
        response = served.get(path.format(name=name))
        assert response.status_code == 404
        assert_promised(response, path)


def test_warmup_is_as_described(served):
    for ask in (served.post, served.get):
        assert assert_promised(ask("/_k/warmup"), "/_k/warmup") == {"warm": True}


def test_503_and_401_are_as_described(tmp_path):
    with serving(tmp_path, stub=True, BANANA_API_KEY="key") as served:
        for path in ("/", "/_k/warmup", "/invocations", "/v2/models/{name}/infer"):
            assert served.post(path, headers={"X-Banana-API-Key": "key"}).status_code == 503
            assert_promised(served.post(path, headers={"Authorization": "Bearer key"}), path)
            assert served.post(path).status_code == 401
            assert_promised(served.post(path), path)
        for path in ("/_k/status", "/metrics", "/v2", "/v2/models/{name}", "/v2/models/{name}/ready"):
            assert served.get(path).status_code == 401
            assert_promised(served.get(path), path)
        for ask in (requests.get, requests.head):
            for path, status in (("/healthcheck", 503), ("/v2", 503), ("/v2/health/ready", 503), ("/ping", 204)):
                response = ask(served.url + path, headers={"X-Banana-API-Key": "key"}, timeout=DEADLINE_S)
                assert response.status_code == status
                assert_promised(response, path)


@pytest.mark.parametrize("change", [{"class_id": "0"}, {"extra": 1}, {"probability": 2}, {"predictions": []}])
def test_the_schema_refuses_other_responses(served, change):
    answer = served.post(json={"image": IMAGE}).json()
    schema = API["components"]["schemas"]["Answer"]
    assert fits(answer, schema)
    assert not fits(answer | change, schema)
