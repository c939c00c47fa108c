"""Any request is a 200, 413 or 422 in bounded time.

FUZZ_SCALE (default 1) multiplies the number of examples. With 1 they are the same in every run; with more, as in
`make fuzz`, they differ.
"""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.fuzzing import IMAGE, SMALL, examples

# -- JSON ------------------------------------------------------------------------------------------------------------

texts = st.one_of(
    st.sampled_from([IMAGE, "data:image/png;base64," + IMAGE, IMAGE[:40], "data:,", "=", "\ud800"]),
    st.text(st.sampled_from("Aa0+/=-_ \n\r\t,;:\0\u00e9\u2028"), max_size=60),
    st.tuples(st.integers(0, len(IMAGE)), st.text(max_size=3)).map(
        lambda cut: IMAGE[: cut[0]] + cut[1] + IMAGE[cut[0] :]
    ),
)
scalars = st.one_of(
    texts, st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([10**400, -(2**63) - 1, 2**64, 1e308])
)
names = st.sampled_from(["image", "images", "top_k", "probabilities", "Image", "", "model_inputs"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(names | st.text(max_size=4), inner, max_size=5),
)
nearly_right = st.fixed_dictionaries({}, optional={"image": texts, "images": st.lists(texts, max_size=20)}).flatmap(
    lambda given: st.fixed_dictionaries({}, optional={"top_k": scalars, "probabilities": scalars}).map(given.__or__)
)


@examples(150)
@given(value=nearly_right | values, twice=st.booleans(), ascii_only=st.booleans())
def test_survives_json_of_any_shape(ask, value, twice, ascii_only):
    body = json.dumps(json.dumps(value) if twice else value, ensure_ascii=ascii_only)
    ask(body.encode(errors="surrogatepass"), "application/json")


@examples(100)
@given(at=st.integers(0, 60), instead=st.binary(max_size=6), drop=st.integers(0, 6))
def test_survives_damaged_json(ask, at, instead, drop):
    body = json.dumps({"top_k": 1, "image": IMAGE, "probabilities": False, "x": [1.5, None, {"y": "\\"}]}).encode()
    at = at if at < 30 else len(body) - at + 30
    ask(body[:at] + instead + body[at + drop :], "application/json")


@pytest.mark.parametrize("opening", [b"[", b'{"x":', b'{"image":', b'{"images":[', b'"', b'{"top_k":1'])
def test_refuses_endless_json(ask, opening):
    assert ask(opening * 200_000, "application/json") == 422
    assert ask(opening + b"1" * 2_000_000, "application/json") == 422


# -- headers, queries and forms --------------------------------------------------------------------------------------

# Any header value, except for headers that determine where the body ends.
header_text = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
kinds = st.sampled_from(["application/json", "image/png", "application/octet-stream", "multipart/form-data", "text/x"])
content_types = kinds | header_text | st.tuples(kinds, st.just(";"), header_text).map("".join)
header_names = st.sampled_from(["Authorization", "Content-Encoding", "Cookie", "Host", "Range", "Upgrade"])
header_names |= st.sampled_from(["X-Banana-API-Key", "X-Banana-Request-ID"])
queries = st.sampled_from(["", "top_k=1", "top_k=&probabilities=yes", "top_k=" + "9" * 5_000, "top_k=%c2%b2", "&&=;%"])
queries |= st.text(st.sampled_from("topk_=&%;+20ffx[]"), max_size=30)
bodies = st.sampled_from([b"", b"{}", json.dumps({"image": IMAGE}).encode(), SMALL["PNG"][2]])
bodies |= st.binary(max_size=80)


@examples(150)
@given(bodies, content_types, queries, st.dictionaries(header_names, header_text, max_size=3))
def test_survives_any_headers_and_queries(ask, body, content_type, query, headers):
    ask(body, content_type.encode("latin-1"), f"/?{query}", headers)


def test_refuses_headers_that_are_too_long(served):
    assert served.post(headers={"X-Long": "y" * 20_000}).status_code == 413
    assert served.post("/?" + "y" * 20_000).status_code == 413


part_headers = st.sampled_from(
    [
        b'Content-Disposition: form-data; name="image"; filename="a.png"',
        b'Content-Disposition: form-data; name="top_k"',
        b'Content-Disposition: form-data; name="probabilities"',
        b"Content-Disposition: form-data; name=image; filename*=utf-8''%ff",
        b"Content-Disposition: attachment",
        b"Content-Type: text/plain; charset=utf-16",
        b"Content-Transfer-Encoding: base64",
        b"Content-Length: -1",
        b"X: " + b"y" * 9_000,
    ]
)
contents = st.sampled_from([SMALL["PNG"][2], b"1", b"true", b"\xff", b"--x", b""]) | st.binary(max_size=30)
parts = st.tuples(st.lists(part_headers | st.binary(max_size=30), max_size=3), contents)
endings = st.sampled_from([b"\r\n--x--\r\n", b"\r\n--x--", b"--x--", b"\r\n--x\r\n", b"\n", b""])


@examples(125)
@given(parts=st.lists(parts, max_size=5), many=st.sampled_from([1, 1, 1, 20]), ending=endings, boundary=header_text)
def test_survives_forms_of_any_kind(ask, parts, many, ending, boundary):
    whole = b"\r\n".join(b"--x\r\n" + b"\r\n".join([*headers, b"", content]) for headers, content in parts * many)
    for value in ("x", boundary):
        ask(whole + ending, f"multipart/form-data; boundary={value}".encode("latin-1"))


# -- tensors ---------------------------------------------------------------------------------------------------------

INFERENCE = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2, 1, 3], "data": [0, 9, 99, 100, 255, 1]}]}
sides = st.sampled_from([1, 2, 3, 6, 0, -1, 2**31, 2**63, 10**30, 1.5, None, "3"])
numbers = st.lists(st.integers(-1, 256), max_size=8) | st.sampled_from(
    [[[[[0, 9, 9]], [[9, 1, 2]]]], [[0], [9, 9]], "0"]
)
inputs = st.fixed_dictionaries(
    {
        "name": st.just("image"),
        "datatype": st.sampled_from(["UINT8", "UINT8", "BYTES", "FP32"]),
        "shape": st.lists(sides, max_size=5) | st.sampled_from([[1, 2, 1, 3], [2, 1, 1, 3], [1], [2]]),
    },
    optional={"data": numbers | st.lists(texts, max_size=3) | values, "parameters": values},
)
options = st.dictionaries(st.sampled_from(["binary_data", "classification", "binary_data_size"]), scalars, max_size=2)
outputs = st.lists(st.fixed_dictionaries({"name": st.just("probabilities") | texts, "parameters": options}), max_size=2)
inferences = st.fixed_dictionaries(
    {"inputs": st.lists(inputs, max_size=2)}, optional={"outputs": outputs, "id": scalars}
)


@examples(150)
@given(value=inferences | values)
def test_survives_inferences_of_any_shape(ask, route, value):
    ask(json.dumps(value).encode(errors="surrogatepass"), "application/json", route)


@examples(100)
@given(
    at=st.integers(0, 140),
    instead=st.binary(max_size=6),
    drop=st.integers(0, 6),
    length=st.none() | st.integers(0, 200),
)
def test_survives_damaged_inferences(ask, route, at, instead, drop, length):
    body = json.dumps(INFERENCE).encode()
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    ask(body[:at] + instead + body[at + drop :], "application/json", route, headers)


@examples(100)
@given(
    shape=st.lists(sides, min_size=1, max_size=4) | st.sampled_from([[1, 2, 1, 3], [2, 1, 1, 3], [1], [2]]),
    kind=st.sampled_from(["UINT8", "BYTES"]),
    data=st.binary(max_size=12)
    | st.sampled_from([b"\1\0\0\0x" * 2, struct.pack("<I", len(SMALL["PNG"][2])) + SMALL["PNG"][2]]),
    size=st.none() | st.integers(-1, 12) | st.just(2**64),
    more=st.sampled_from([0, 0, 0, 1, -1]),
)
def test_survives_binary_tensors_of_any_shape(ask, route, shape, kind, data, size, more):
    size = {"binary_data_size": len(data) if size is None else size}
    head = json.dumps({"inputs": [{"name": "image", "datatype": kind, "shape": shape, "parameters": size}]}).encode()
    ask(head + data, "application/octet-stream", route, {"Inference-Header-Content-Length": str(len(head) + more)})
