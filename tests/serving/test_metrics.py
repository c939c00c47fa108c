"""The headers of every response, access, the log and the metrics."""

import json
import re
import uuid
from collections.abc import Iterator

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.clients import IMAGE
from tests.server_process import DEADLINE_S, ROOT, TENCH, Served, ready, serving, wait_until

KEY = "sesame-4711"
ORIGIN = "https://page.example"
GET_ROUTES = (
    "/healthcheck /_k/status /__status__ /metrics /openapi.json /ping /v2 /v2/health/live /v2/health/ready "
    "/v2/models/stub /v2/models/stub/ready /v2/models/stub/versions/1 /v2/models/stub/versions/1/ready"
)
POST_ROUTES = ("/invocations", "/v2/models/stub/infer", "/v2/models/stub/versions/1/infer")
ROUTES = {path: {"GET", "HEAD"} for path in GET_ROUTES.split()} | {path: {"POST"} for path in POST_ROUTES}
ROUTES |= {path: {"GET", "HEAD", "POST"} for path in ("/", "/_k/warmup")}
PUBLIC = {"/healthcheck", "/openapi.json", "/ping", "/v2/health/live", "/v2/health/ready"}
ELSEWHERE = "/nowhere /healthcheck/ //healthcheck /healthcheck/.. /%68ealthcheck /_k /* /v2/ /ping/"
EVERYWHERE = [*ROUTES, *ELSEWHERE.split()]
SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The stub's server with a key and a CORS origin."""
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "release").touch()
    with ready(folder, stub=True, BANANA_API_KEY=KEY, CORS_ORIGIN=ORIGIN, MAX_BODY_MB="1") as served:
        yield served


def ask(served: Served, method: str, path: str, key: str | None = KEY, **arguments) -> requests.Response:
    """Send the path as it is; `requests` would normalize it."""
    headers = {"X-Banana-API-Key": key} if key else {}
    request = requests.Request(method, served.url, headers=headers | arguments.pop("headers", {}), **arguments)
    with requests.Session() as session:
        prepared = session.prepare_request(request)
        prepared.url = served.url + path
        return session.send(prepared, timeout=DEADLINE_S)


def one_of_each(served: Served) -> dict[int, requests.Response]:
    """Return a response of each status that a healthy server sends."""
    image = {"Content-Type": "image/jpeg"}
    answers = [
        ask(served, "POST", "/", data=b"x", headers=image),
        ask(served, "OPTIONS", "/"),
        ask(served, "GET", "/metrics", key="another"),
        ask(served, "GET", "/nowhere"),
        ask(served, "PUT", "/"),
        ask(served, "POST", "/", data=b"x" * 2_000_000, headers=image),
        ask(served, "POST", "/", data=b"no JSON"),
        ask(served, "POST", "/", data=b"fail", headers=image),
    ]
    by_status = {answer.status_code: answer for answer in answers}
    assert set(by_status) == {200, 204, 401, 404, 405, 413, 422, 500}
    return by_status


@pytest.mark.parametrize("key", [None, "", "sesame", KEY + "x", KEY.upper(), "\u00e9".encode()])
def test_serves_only_public_paths_without_the_key(keyed, key):
    for path in EVERYWHERE:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
            answer = ask(keyed, method, path, key, data=b"{}")
            if path == "/" and method in ("GET", "HEAD"):
                assert answer.status_code == 200
            elif path in PUBLIC:
                assert answer.status_code == (200 if method in ROUTES[path] else 405)
            else:
                assert (answer.status_code, method, path) == (401, method, path)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GARBAGE", 422),
        (b"PRI * HTTP/2.0", 422),
        (b"GET /%b HTTP/1.1" % (b"x" * 20_000), 413),
        (b"GET / HTTP/1.1\r\nX-Long: %b" % (b"x" * 20_000), 413),
        (b"POST / HTTP/1.1\r\nContent-Length: nine", 422),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1", 422),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nExpect: mercy", 417),
    ],
)
def test_malformed_requests_are_not_401(keyed, request_line, status):
    answer = keyed.raw(request_line + b"\r\nX-Banana-API-Key: %b\r\n\r\n" % KEY.encode())
    assert answer.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(("environment", "warns"), [({}, True), ({"BANANA_API_KEY": KEY}, False)])
def test_warns_of_an_open_port_without_a_key(tmp_path, environment, warns):
    with serving(tmp_path, stub=True, HOST="0.0.0.0", **environment) as served:
        wait_until(lambda: " listening " in served.log.read_text(), "it has started")
        assert (" warning no API key is set: " in served.log.read_text()) == warns
        assert f" listening url={served.url} host=0.0.0.0 " in served.log.read_text()


@pytest.mark.parametrize("path", EVERYWHERE)
def test_head_has_no_body_and_options_names_the_methods(keyed, path):
    head = f"HEAD {path} HTTP/1.1\r\nX-Banana-API-Key: {KEY}\r\nConnection: close\r\n\r\n".encode()
    headers, _, body = keyed.raw(head).partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 %d " % ask(keyed, "GET", path).status_code)
    assert re.search(rb"(?i)content-length: [1-9]", headers)
    assert body == b""
    options = ask(keyed, "OPTIONS", path, key=None)
    if path in ROUTES:
        assert (options.status_code, options.content) == (204, b"")
        assert set(re.findall(r"\w+", options.headers["Allow"])) == ROUTES[path]


def test_every_response_has_the_security_and_cors_headers(keyed):
    for status, answer in one_of_each(keyed).items():
        assert SAFE_HEADERS.items() <= answer.headers.items(), status
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Vary"] == "Origin"
        assert "Server" not in answer.headers
    malformed = keyed.raw(b"GARBAGE\r\n\r\n")
    assert all(f"{name}: {value}".encode() in malformed for name, value in SAFE_HEADERS.items())


def test_preflight_allows_what_a_request_needs(keyed):
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    answer = ask(keyed, "OPTIONS", "/", key=None, headers=asked)
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert {"Content-Type", "X-Banana-API-Key"} <= set(answer.headers["Access-Control-Allow-Headers"].split(", "))
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_has_no_cors_headers_by_default(served):
    for method, path in (("GET", "/healthcheck"), ("OPTIONS", "/"), ("GET", "/nowhere")):
        answer = ask(served, method, path, headers={"Origin": ORIGIN})
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert SAFE_HEADERS.items() <= answer.headers.items()


def test_never_reveals_the_key(keyed):
    said = [answer.text + str(answer.headers) for answer in one_of_each(keyed).values()]
    for path in EVERYWHERE:
        said.append(ask(keyed, "POST", path, data=b"{}").text)
        said.append(ask(keyed, "GET", f"{path}?api_key={KEY}").text)  # not how to send it, but some will
        said.append(ask(keyed, "GET", path, key=None, headers={"Authorization": f"Bearer {KEY}"}).text)
    said.append(keyed.raw(f"GET /\x01 HTTP/1.1\r\nX-Banana-API-Key: {KEY}\r\n\r\n".encode()).decode())
    said.append(keyed.log.read_text())
    assert not [text for text in said if KEY in text]


def test_returns_and_logs_the_request_id(keyed):
    for given in ("7f9c1d1e-55c5-4c1f-9d9c-1b0a0c6a4f11", "a", "trace:1.2_3-4", "x" * 128):
        answer = ask(keyed, "GET", "/healthcheck", headers={"X-Banana-Request-ID": given})
        assert answer.headers["X-Request-ID"] == given
        assert f" id={given} method=GET path=/healthcheck status=200 " in keyed.log.read_text()


@pytest.mark.parametrize("name", [b"X-Banana-Request-ID", b"X-Request-ID"])
@pytest.mark.parametrize(
    "given",
    [
        *(b"", b"a b", b"x" * 1000, b"\xc3\xa9", b"\xff", b"\xd9\xa5"),
        *(b"a\nSet-Cookie: x=1", b"a\rb", b"a\x00b", b'a"b', b"a=b"),
    ],
)
def test_replaces_an_invalid_request_id(keyed, name, given):
    request = b"GET /healthcheck HTTP/1.1\r\nConnection: close\r\n%b: %b\r\n\r\n" % (name, given)
    shown = re.search(rb"(?i)x-request-id: (.*)\r\n", keyed.raw(request))[1].decode()
    assert uuid.UUID(shown)
    assert f" id={shown} method=GET path=/healthcheck status=200 " in keyed.log.read_text()


def test_logs_a_request_as_one_line_of_json(tmp_path):
    with ready(tmp_path, LOG_FORMAT="json") as served:
        call = served.post(files={"image": IMAGE}, headers={"X-Banana-Request-ID": "good"}).json()
        served.post(json={"image": "not base64!"}, headers={"X-Banana-Request-ID": "bad"})
        lines = [json.loads(line) for line in served.log.read_text().splitlines()]
        events = [line["event"] for line in lines]
        assert {"listening", "ready", "request"} <= set(events)
        [good] = [line for line in lines if line.get("id") == "good"]
        assert (good["method"], good["path"], good["status"], good["level"]) == ("POST", "/", 200, "info")
        assert len(IMAGE) < good["bytes"] < len(IMAGE) + 1000
        assert [re.fullmatch(r"JPEG \d+x\d+", image) is not None for image in good["images"]] == [True]
        assert (good["decode_ms"], good["model_ms"]) == (call["timing_ms"]["decode"], call["timing_ms"]["model"])
        assert good["queue_ms"] >= 0 and good["total_ms"] >= call["timing_ms"]["total"] - 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", good["time"])
        [bad] = [line for line in lines if line.get("id") == "bad"]
        assert bad["status"] == 422 and "model_ms" not in bad


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_clients_cannot_forge_log_lines(tmp_path, log_format):
    forged = b"2030-01-01T00:00:00.000+00:00 info ready forged=yes"
    with serving(tmp_path, stub=True, LOG_FORMAT=log_format) as served:
        ways = [b"/a\n%b", b"/a\r%b", b"/\x1b[2J%b", b"/%%0A%b", b"/\xe2\x80\xa8%b", b"/\x85%b", b"/\x7f%b", b"/?\n%b"]
        for way in ways:
            path = way % forged.replace(b" ", b"\t")
            for request in (b"GET %b HTTP/1.1", b"G\nE%b / HTTP/1.1", b"PUT / HTTP/1.1\r\nX-Banana-Request-ID: %b"):
                head = b"\r\nConnection: close\r\nContent-Length: 0\r\nAuthorization: %b\r\n\r\n" % path
                answer = served.raw(request % path + head)
                assert re.match(rb"HTTP/1.1 (404|405|422) ", answer), request % path
        log = served.log.read_bytes().decode("ascii")
        assert "Traceback" not in log
        for line in log.split("\n")[:-1]:
            assert line.isprintable()
            if log_format == "json":
                assert json.loads(line)["event"] in ("listening", "ready", "request")
            else:
                assert re.match(r"20\d\d-\S+ info (listening|ready|request) ", line), line
                assert "ready forged" not in line


def test_logs_a_failure_with_its_id_on_one_line(keyed):
    answer = one_of_each(keyed)[500]
    wanted = f" error failed id={answer.headers['X-Request-ID']} traceback="
    [line] = [line for line in keyed.log.read_text().splitlines() if wanted in line]
    assert "RuntimeError: a bug" in line


def test_metrics_count_responses_and_time_requests(served):
    def numbers() -> list[float]:
        names = [f'classifier_requests_total{{status="{status}"}}' for status in (200, 404, 405, 422)]
        names += [f"classifier_{what}_seconds_count" for what in ("queue", "decode", "model")]
        labels = [("classify", 200), ("classify", 422), ("other", 200), ("other", 404)]
        names += [f'classifier_request_seconds_count{{route="{route}",status="{status}"}}' for route, status in labels]
        return [served.metric(name) for name in names]

    before = numbers()
    asked = len(before)  # every request for the metrics is a 200 too
    served.post(data=TENCH.read_bytes(), headers={"Content-Type": "image/jpeg"})
    served.post(data=b"no image", headers={"Content-Type": "image/jpeg"})
    served.get("/nowhere")
    served.get("/invocations")
    served.raw(b"GARBAGE\r\n\r\n")
    gained = [after - earlier for earlier, after in zip(before, numbers(), strict=True)]
    assert gained == [asked + 1, 1, 1, 2, 1, 1, 1, 1, 1, asked, 1]
    health = served.get("/healthcheck").json()
    [info] = [line for line in served.get("/metrics").text.splitlines() if line.startswith("classifier_model_info{")]
    assert f'model="{health["model"]}"' in info and f'execution_provider="{health["execution_provider"]}"' in info


# docs/operations.md: its queries select existing metrics, and only of requests that classify.
MATCHES = {"=": str.__eq__, "!=": str.__ne__, "=~": lambda value, pattern: bool(re.fullmatch(pattern, value))}


def test_documented_queries_select_requests_that_classify(tmp_path):
    with ready(tmp_path, stub=True) as served:
        failed = served.post(data=b"fail", headers={"Content-Type": "image/jpeg"})
        assert failed.status_code == 500
        families = list(text_string_to_metric_families(served.get("/metrics").text))
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"```promql\n(.+?)```", page, re.DOTALL))
    selectors = re.findall(r"(classifier_\w+)(?:{(.*?)})?", lines)
    assert len(selectors) == 4
    for name, conditions in selectors:
        wanted = re.findall(r'(\w+)(=~|!=|=)"(.*?)"', conditions)
        selected = [
            sample
            for family in families
            for sample in family.samples
            if sample.name == name and all(MATCHES[how](sample.labels[label], value) for label, how, value in wanted)
        ]
        assert selected, f"nothing is {name}{{{conditions}}}"
        assert "other" not in {sample.labels.get("route") for sample in selected}
