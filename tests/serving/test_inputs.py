"""inputs.py: all ways to send an image give the same inputs, and anything else is refused."""

import base64
import json
import re
import subprocess
import sys

import pytest

from runtime.errors import InvalidInput
from runtime.settings import ROOT
from serving.inputs import MAX_COMMAS, MAX_FORM_PARTS, parse_inputs

IMAGE = bytes(range(256))
TEXT = base64.b64encode(IMAGE).decode()
BODY = json.dumps({"image": TEXT, "top_k": 2, "probabilities": True}).encode()
JSON = "application/json"
FORM = "multipart/form-data; boundary=x"
URLENCODED = "application/x-www-form-urlencoded"


def form(*parts: tuple[str, bytes], end: bytes = b"--x--\r\n") -> bytes:
    """Return a form's body, of fields by name."""
    whole = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in parts
    )
    return whole + end


def refusal(content_type: str, body: bytes, query: dict | None = None) -> str:
    """Return the message of the refusal."""
    with pytest.raises(InvalidInput) as raised:
        parse_inputs(content_type, body, query or {})
    return str(raised.value)


@pytest.mark.parametrize(
    ("content_type", "body", "query"),
    [
        (JSON, BODY, {}),
        ("Application/JSON; charset=utf-8", BODY, {}),
        ("", BODY, {}),
        ("", b"\xef\xbb\xbf" + BODY, {}),
        (URLENCODED, BODY, {}),  # as `curl -d` sends it
        (URLENCODED, f"top_k=2&image={TEXT}&probabilities=true".encode(), {"top_k": "7"}),  # "+" stays one
        ("text/plain", b" \n" + json.dumps(BODY.decode()).encode(), {}),
        (JSON, json.dumps({"image": TEXT, "top_k": 2, "probabilities": None}).encode(), {"probabilities": "true"}),
        (JSON, BODY, {"top_k": "7"}),
        ("image/png", IMAGE, {"top_k": "2", "probabilities": "true"}),
        ("IMAGE/anything; q=1", IMAGE, {"top_k": "2", "probabilities": "true"}),
        ("application/octet-stream", IMAGE, {"top_k": "2", "probabilities": "true"}),
        ("application/x-image", IMAGE, {"top_k": "2", "probabilities": "true"}),
        (FORM, form(("image", IMAGE), ("top_k", b"2"), ("probabilities", b"true")), {}),
        (FORM, form(("image", IMAGE), ("top_k", b"2")), {"top_k": "7", "probabilities": "true"}),
        (
            'Multipart/Form-Data; charset=utf-8; boundary="x"',
            form(("image", IMAGE), ("top_k", b"2"), *[("other", b"")] * (MAX_FORM_PARTS - 2)),
            {"probabilities": "true"},
        ),
    ],
)
def test_all_ways_to_send_an_image_give_the_same_inputs(content_type, body, query):
    assert parse_inputs(content_type, body, query) == {"image": IMAGE, "top_k": 2, "probabilities": True}


SIGNATURES = [
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x10\0\0\0WEBP",
    b"GIF89a\x20\x20\x20\x20",
    b"BM\x10\0\0\0\0\0",
]


@pytest.mark.parametrize("kind", [JSON, "", "text/plain", URLENCODED, "binary/octet-stream", FORM])
@pytest.mark.parametrize(
    "start",
    [
        *SIGNATURES,
        *(b"\0\0\0\x18ftypheic", b"%PDF-1.4", b"<svg ", b"\0\0\1\0", b"FUJIFILMCCD-RAW 0201"),
        b"\x1f\x8b\x08",
        *(b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg ", b"\n<!DOCTYPE html>", b"\n%PDF-1.4"),
    ],
)
def test_recognizes_a_file_whatever_its_content_type(kind, start):
    file = start + bytes(20)
    assert parse_inputs(kind, file, {"top_k": "2"}) == {"image": file, "top_k": 2}


def test_searches_a_body_of_blanks_without_backtracking():
    script = """if True:
        import resource
        from serving.inputs import InvalidInput, parse_inputs
        resource.setrlimit(resource.RLIMIT_CPU, (3, 3))  # backtracking takes 6 s
        try: parse_inputs("", b" " * 100_000_000, {})
        except InvalidInput: pass
    """
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("kind", [JSON, "", "image/png", FORM, URLENCODED])
def test_takes_an_empty_body_for_an_image(kind):
    assert parse_inputs(kind, b"", {}) == {"image": b""}  # for app.py to refuse


@pytest.mark.parametrize("start", SIGNATURES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text,
        lambda text: f"\r\n {text}\n",
        lambda text: "\n".join(re.findall(".{1,76}", text)),
        lambda text: f"data:image/x;base64,{text}",
        lambda text: f" DATA:image/x;base64, {text}",
        lambda text: str(text.encode()),
        lambda text: text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: base64.encodebytes(f"data:image/x;base64,{text}".encode()).decode(),
    ],
    ids=["plain", "blanks", "lines", "data-url", "DATA-url", "python", "percent", "twice", "data-url-twice"],
)
def test_accepts_base64_in_every_form(start, wrap):
    file = start + IMAGE + b"\xfb\xef\xff"
    text = wrap(base64.b64encode(file).decode())
    assert parse_inputs(JSON, json.dumps({"image": text}).encode(), {}) == {"image": file}
    assert parse_inputs(URLENCODED, f"top_k=2&image={text}".encode(), {})["image"] == file
    assert parse_inputs(FORM, form(("image", text.encode())), {}) == {"image": file}
    for kind in ("text/plain", "image/jpeg", JSON):
        assert parse_inputs(kind, text.encode(), {}) == {"image": file}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://a.example/x.jpg", "URLs are not fetched"),
        (" FILE:///etc/passwd", "URLs are not fetched"),
        ("s3://bucket/x.jpg", "URLs are not fetched"),
        (f"{TEXT[:40]} {TEXT[41:]}", "%2B"),
        (f"{TEXT[:40]} \n{TEXT[40:]}", "%2B"),
        (f"data:image/png;base64,{TEXT[:40]} {TEXT[41:]}", "%2B"),
        ("images/tench.jpeg", "not base64"),
        ("data:image/svg+xml,<svg/>", "not base64"),
        ("%41%42", "not base64"),
    ],
)
def test_names_what_is_not_base64(text, says):
    assert says in refusal(JSON, json.dumps({"image": text}).encode())


def test_treats_null_as_not_set():
    nothing = {"images": None, "top_k": None, "probabilities": None}
    assert parse_inputs(JSON, json.dumps(nothing | {"image": TEXT}).encode(), {}) == {"image": IMAGE}
    assert parse_inputs(JSON, json.dumps(nothing | {"image": None}).encode(), {}) == {}


def test_ignores_unknown_fields():
    body = {"image": TEXT, "other": {"image": [1.5, None]}, "Image": 1, "top_K": 2, "": [], "\u00e9": "\u2028"}
    assert parse_inputs(JSON, json.dumps(body).encode(), {"image": "aGk=", "other": "4"}) == {"image": IMAGE}
    assert parse_inputs("image/png", IMAGE, {"other": "4", "image": TEXT}) == {"image": IMAGE}
    assert parse_inputs(FORM, form(("image", IMAGE), ("other", b"4"), ("images", b"5")), {}) == {"image": IMAGE}


def test_uses_the_last_of_duplicate_fields():
    assert parse_inputs(JSON, b'{"image": "", "top_k": 1, "image": "aGk=", "top_k": 2}', {}) == {
        "image": b"hi",
        "top_k": 2,
    }
    assert parse_inputs(FORM, form(("image", b"hi"), ("top_k", b"1"), ("top_k", b"2")), {}) == {
        "image": b"hi",
        "top_k": 2,
    }


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"image": "aGk="', "not JSON"),
        (b'{"image": "aGk="} x', "not JSON"),
        (b'{"image": NaN}', "not JSON"),
        (b'{"image": "\xff"}', "not JSON"),
        (b'"\xff"', "not JSON"),
        (b'"\\ud800"', "not JSON"),
        (b"null", "not the JSON that is expected"),
        (b"[]", "not the JSON that is expected"),
        (b'{"image": ["aGk="]}', "Expected base64"),
        (b'{"images": "aGk="}', "Expected"),
        (b'{"image": "aGk=", "top_k": 1.5}', r"top_k"),
        (b'{"image": "aGk=", "top_k": "5"}', r"top_k"),
        (b'{"image": "aGk=", "probabilities": 1}', r"probabilities"),
        (b'"not JSON inside"', "not JSON"),
        (b'"\\"twice\\""', "got `str`"),
    ],
)
def test_refuses_json_without_inputs(body, says):
    message = refusal(JSON, body)
    assert re.search(says, message), message
    assert 'send {"image": "<base64>"}' in message
    assert "`bytes`" not in message


def test_decodes_no_list_of_more_texts_than_settings_allow():
    urls = ",".join(['"data:,aGk="'] * 1024)  # the maximum of MAX_IMAGES
    assert parse_inputs(JSON, b'{"images": [%b]}' % urls.encode(), {}) == {"images": [b"hi"] * 1024}
    assert "Expected base64" in refusal(JSON, b'{"images": [7%b]}' % (b",7" * MAX_COMMAS))
    assert "too many items" in refusal(JSON, b'{"images": [7%b]}' % (b",7" * (MAX_COMMAS + 1)))


@pytest.mark.parametrize("number", [b"9" * 1_000_000, b"1e999999999", b"0." + b"3" * 1_000_000, b"-" + b"9" * 5_000])
def test_survives_huge_numbers(number):
    assert "top_k" in refusal(JSON, b'{"image": "aGk=", "top_k": ' + number + b"}")
    assert parse_inputs("image/png", b"hi", {"top_k": number.decode()}) == {"image": b"hi", "top_k": number.decode()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0", 0),
        ("999999999", 999_999_999),
        ("1000000000", "1000000000"),
        ("\u00b2", "\u00b2"),
        ("\u0663", "\u0663"),
        ("-1", "-1"),
        ("true", True),
        ("True", "True"),
        ("", ""),
    ],
)
def test_converts_text_options_to_json_types(text, value):
    for inputs in (
        parse_inputs("image/x", b"hi", {"top_k": text}),
        parse_inputs(FORM, form(("image", b"hi"), ("top_k", text.encode())), {}),
    ):
        assert inputs == {"image": b"hi", "top_k": value}
        assert type(inputs["top_k"]) is type(value)


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        ("multipart/form-data", form(("image", b"hi")), "boundary"),
        ("multipart/form-data; boundary=", form(("image", b"hi")), "boundary"),
        ('multipart/form-data; boundary="', form(("image", b"hi")), "boundary"),
        ("multipart/form-data; boundary=y", form(("image", b"hi")), "cannot be read"),
        (FORM, b"no form", "cannot be read"),
        (FORM, form(("image", b"hi"), end=b""), "cannot be read"),
        (FORM, form(), "one file in the field `image`"),
        (FORM, form(("photo", b"hi")), "one file in the field `image`"),
        (FORM, form(("image", b"hi"), ("image", b"hi")), "one file in the field `image`"),
        (FORM, form(*[("other", b"")] * MAX_FORM_PARTS, ("image", b"hi")), "count"),
        (URLENCODED, b"image=!&" + b"&" * MAX_FORM_PARTS + b"image=aGk=", "not base64"),
        (FORM, b"--x\r\nContent-Disposition: form-data\r\n\r\nhi\r\n--x--", "one file in the field `image`"),
        (FORM, b"--x\r\n\r\nhi\r\n--x--", "Content-Disposition"),
        (FORM, b"--x\r\nContent-Disposition: form-data; name=\xff\r\n\r\nhi\r\n--x--", "decode"),
        (FORM, b"--x\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\nhi\r\n--x--", "length"),
        (FORM, b"--x\r\n" + b"X: y\r\n" * 1_000 + b"\r\nhi\r\n--x--", "count"),
    ],
)
def test_refuses_forms_without_an_image(content_type, body, says):
    message = refusal(content_type, body)
    assert re.search(says, message), message


@pytest.mark.parametrize("charset", ["punycode", "utf-16", "rot13", "nonsense"])
def test_ignores_the_charset_of_a_form_field(charset):
    # The time to decode Punycode grows with the square of its length.
    part = f'--x\r\nContent-Disposition: form-data; name="top_k"\r\nContent-Type: text/plain; charset={charset}\r\n\r\n'
    body = form(("image", b"hi"), end=part.encode() + b"a-" + b"b" * 2_000_000 + b"\r\n--x--")
    assert parse_inputs(FORM, body, {})["top_k"].startswith("a-b")
