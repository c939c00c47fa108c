"""openapi.json says what the server does: every route, and answers of the shapes that it promises."""

import base64
import json

import pytest
import requests

import app
from server import server
from tests.server_process import DEADLINE_S, ROOT, TENCH, Served, serving

API = json.loads((ROOT / "serving" / "openapi.json").read_text())
PICTURE = base64.b64encode(TENCH.read_bytes()).decode()
INFERENCE = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [PICTURE]}]}
BEST = {"name": "probabilities", "parameters": {"classification": 3}}
METHODS = ("get", "head", "post")
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def resolved(node: dict) -> dict:
    """Return what a $ref refers to, or the node itself."""
    while "$ref" in node:
        target = API
        for name in node["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        node = target
    return node


def fits(value: object, schema: dict) -> bool:
    """Return whether the value is what the schema says, as far as serving/openapi.json makes use of JSON Schema."""
    schema = resolved(schema)
    kind = TYPES.get(schema.get("type"), object)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return (
            set(schema.get("required", [])) <= set(value)
            and (schema.get("additionalProperties", True) or set(value) <= set(known))
            and all(fits(value[name], known[name]) for name in set(value) & set(known))
            and ("oneOf" not in schema or sum(fits(value, option) for option in schema["oneOf"]) == 1)
        )
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(fits(item, schema.get("items", {})) for item in value)
    if value not in schema.get("enum", [schema.get("const", value)]):
        return False
    return isinstance(value, str) or schema.get("minimum", value) <= value <= schema.get("maximum", value)


def model_of(served: Served) -> str:
    """Return the name of the server's model."""
    return served.get("/healthcheck").json()["model"]


def assert_promised(response, path: str) -> dict | str:
    """Fail unless serving/openapi.json promises this answer: its status, headers, type and body. Return the body."""
    promised = resolved(API["paths"][path][response.request.method.lower()]["responses"][str(response.status_code)])
    for name in ("X-Request-ID", "Retry-After"):
        assert (name in response.headers) == (name in promised["headers"])
    if "content" not in promised:
        assert response.content == b""
        return ""
    kind = response.headers["Content-Type"].partition(";")[0]
    body = response.json() if kind == "application/json" else response.text
    assert fits(body, promised["content"][kind]["schema"]), body
    return body


def test_every_route_and_no_other_is_described():
    routes = {(f"/{route.path}", method.lower()) for route in server.router.routes for method in route.methods}
    routes = {(path, method) for path, method in routes if not path.startswith("/page/")}  # a browser's, not a caller's
    described = {(path, method) for path, methods in API["paths"].items() for method in methods if method in METHODS}
    assert routes == {(path.replace("{name}", "<name:str>"), method) for path, method in described}


def test_every_reference_leads_somewhere_and_nothing_is_left_over():
    references = set(json.dumps(API).split('"$ref": "#/components/')[1:])
    used = {reference.partition('"')[0] for reference in references}
    there = {f"{kind}/{name}" for kind, parts in API["components"].items() for name in parts if kind[:8] != "security"}
    assert used == there


def test_the_version_is_the_servers():
    assert API["info"]["version"] == app.VERSION


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (200, {"json": {"image": PICTURE}}),
        (200, {"json": {"images": [PICTURE, PICTURE], "top_k": 1, "probabilities": True}}),
        (
            200,
            {
                "data": TENCH.read_bytes(),
                "headers": {"Content-Type": "image/jpeg"},
                "params": {"probabilities": "true"},
            },
        ),
        (200, {"files": {"image": TENCH.read_bytes()}}),
        (422, {"json": {}}),
        (413, {"data": b"A" * 21_000_000}),
    ],
)
def test_calls_get_what_is_promised(served, status, arguments):
    response = served.post(**arguments)
    assert response.status_code == status
    assert_promised(response, "/")


@pytest.mark.parametrize("path", [path for path in API["paths"] if "get" in API["paths"][path]])
def test_routes_that_are_read_give_what_is_promised(served, path):
    asked = path.replace("{name}", model_of(served))
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
def test_inferences_get_what_is_promised(served, status, arguments):
    response = served.post(f"/v2/models/{model_of(served)}/infer", **arguments)
    assert response.status_code == status
    assert_promised(response, "/v2/models/{name}/infer")


@pytest.mark.parametrize("path", ["/v2/models/{name}", "/v2/models/{name}/ready"])
def test_a_model_that_is_not_there_gets_what_is_promised(served, path):
    response = served.get(path.replace("{name}", "another"))
    assert response.status_code == 404
    assert_promised(response, path)


def test_warmup_gives_what_is_promised(served):
    assert assert_promised(served.post("/_k/warmup"), "/_k/warmup") == {"warm": True}


def test_refusals_are_as_promised_while_the_model_loads_and_without_the_key(tmp_path):
    with serving(tmp_path, stub=True, BANANA_API_KEY="key") as served:
        for path in ("/", "/_k/warmup", "/invocations", "/v2/models/{name}/infer"):
            assert served.post(path, headers={"X-Banana-API-Key": "key"}).status_code == 503
            assert_promised(served.post(path, headers={"Authorization": "Bearer key"}), path)
            assert served.post(path).status_code == 401
            assert_promised(served.post(path), path)
        for path in ("/_k/status", "/metrics", "/openapi.json", "/v2", "/v2/models/{name}", "/v2/models/{name}/ready"):
            assert served.get(path).status_code == 401
            assert_promised(served.get(path), path)
        for ask in (requests.get, requests.head):
            for path, status in (("/healthcheck", 503), ("/v2/health/ready", 503), ("/ping", 204)):
                response = ask(served.url + path, timeout=DEADLINE_S)
                assert response.status_code == status
                assert_promised(response, path)


@pytest.mark.parametrize("change", [{"class_id": "0"}, {"extra": 1}, {"probability": 2}, {"predictions": []}])
def test_an_answer_that_is_not_promised_is_found_out(served, change):
    answer = served.post(json={"image": PICTURE}).json()
    schema = API["components"]["schemas"]["Answer"]
    assert fits(answer, schema)
    assert not fits(answer | change, schema)
