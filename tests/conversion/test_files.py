"""files.py against a real HTTP server on this machine: the file arrives whole and right, or not at all."""

import dataclasses
import gzip
import hashlib
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import pytorch_model
from conversion import ConversionError, trained_model
from conversion.files import digests, download
from pytorch_model import KNOWN_MODELS
from tests.server_process import ROOT

CONTENT = b"\x00weights\xff" * 1000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
PACKED = gzip.compress(CONTENT)

# Path: status, headers, body.
ANSWERS = {
    "/right": (200, {"Content-Length": len(CONTENT)}, CONTENT),
    "/unsized": (200, {}, CONTENT),
    "/packed": (200, {"Content-Length": len(PACKED), "Content-Encoding": "gzip"}, PACKED),
    "/moved": (302, {"Location": "/right"}, b""),
    "/absent": (404, {}, b"not here"),
    "/page": (200, {"Content-Type": "text/html; charset=utf-8"}, b"<!DOCTYPE html>"),
    "/wrong": (200, {"Content-Length": 5}, b"other"),
    "/broken": (200, {"Content-Length": len(CONTENT)}, CONTENT[:100]),
}
PHOTOS = ["/n01440764_tench.jpeg", "/n01632777_axolotl.jpeg"]
ANSWERS |= dict.fromkeys(PHOTOS, ANSWERS["/right"])

BAD_ADDRESSES = {
    "absent": "404",
    "page": "text/html; charset=utf-8, unknown digest",
    "wrong": f"unknown digest sha256:{hashlib.sha256(b'other').hexdigest()}",
    "broken": "100 ",  # bytes of 9000, in the words of whichever layer notices first
    "refused": "refused",
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        status, headers, body = ANSWERS[self.path.partition("?")[0]]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def running():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running.asked.clear()
    return running


@pytest.fixture
def url(server):
    with socket.socket() as closed:  # bound but not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        hosts = {"refused": closed.getsockname()}
        yield lambda name: "http://{}:{}/{}".format(*hosts.get(name, server.server_address), name)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("name", ["right", "unsized", "packed", "moved"])
def test_downloads_the_file_and_leaves_nothing_else(url, path, name):
    download([url(name)], path, [DIGEST])
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", BAD_ADDRESSES)
def test_tries_the_second_url_if_the_first_fails(url, path, name):
    download([url(name), url("right")], path, [DIGEST])
    assert path.read_bytes() == CONTENT


def test_requests_no_second_url_if_the_first_works(server, url, path):
    download([url("right"), url("unsized")], path, [DIGEST])
    assert server.asked == ["/right"]


def test_a_failure_names_each_url_with_its_reason(url, path):
    with pytest.raises(ConversionError) as failure:
        download([url(name) for name in BAD_ADDRESSES], path, [DIGEST])
    first, *lines, advice = str(failure.value).splitlines()
    assert first.startswith("weights.pth could not be downloaded from 127.0.0.1:")  # auto prints this line alone
    assert "next to convert_to_onnx.py" in advice and "--weights" in advice
    assert len(lines) == len(BAD_ADDRESSES)
    for line, (name, reason) in zip(lines, BAD_ADDRESSES.items(), strict=True):
        assert line.startswith(f"  {url(name)}: ")
        assert reason in line.removeprefix(f"  {url(name)}: ")


@pytest.fixture
def photos(server, monkeypatch):
    """The addresses of the photographs, and their digest, replaced by this server's."""
    monkeypatch.setattr(trained_model, "PHOTOS_URL", "http://{}:{}".format(*server.server_address))
    monkeypatch.setattr(trained_model, "PHOTOS", dict.fromkeys(pytorch_model.PHOTOS, DIGEST))


@pytest.fixture
def resnet18(monkeypatch, url, path):
    """resnet18 with weights that this server has, and a repository's images/ in which nothing is yet."""
    (path.parent / "images").mkdir()
    monkeypatch.setattr(trained_model, "ROOT", path.parent)
    return dataclasses.replace(KNOWN_MODELS["resnet18"], weights=path, urls=(url("right"),), digests=(DIGEST,))


def files_in(folder):
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def test_the_photographs_come_with_the_weights(photos, resnet18, path):
    assert trained_model.known_weights(resnet18) == path
    assert files_in(path.parent) == [*sorted(pytorch_model.PHOTOS), "weights.pth"]
    assert files_in(path.parent / "images" / "photos") == sorted(pytorch_model.PHOTOS)


@pytest.mark.parametrize("failure", ["absent", "wrong"])
@pytest.mark.parametrize("photo", PHOTOS)
def test_without_photographs_the_weights_are_enough(photos, resnet18, path, monkeypatch, capsys, failure, photo):
    monkeypatch.setitem(ANSWERS, photo, ANSWERS[f"/{failure}"])
    trained_model.known_weights(resnet18)
    assert "weights.pth" in files_in(path.parent) and photo[1:] not in files_in(path.parent)
    assert (path.parent / "images" / "photos").exists() == (photo == PHOTOS[1])  # no empty folder
    assert f"illustrations: {photo[1:]} could not be downloaded from 127.0.0.1:" in capsys.readouterr().err


def test_weights_that_are_there_need_no_network(photos, resnet18, path, server):
    path.write_bytes(CONTENT)
    trained_model.known_weights(resnet18)
    assert server.asked == []


def test_make_and_the_converter_download_the_same_photographs():
    makefile = (ROOT / "Makefile").read_text()
    assert f"PHOTOS_URL ?= {pytorch_model.PHOTOS_URL}\n" in makefile
    for name, digest in pytorch_model.PHOTOS.items():
        assert f"images/photos/{name}: SHA256 := {digest.removeprefix('sha256:')}\n" in makefile


@pytest.mark.parametrize("old", [{}, {"weights.pth": b"old"}], ids=["no file", "an old file"])
@pytest.mark.parametrize("name", BAD_ADDRESSES)
def test_a_failure_leaves_what_was_there(url, path, name, old):
    for file, content in old.items():
        path.with_name(file).write_bytes(content)
    with pytest.raises(ConversionError):
        download([url(name)], path, [DIGEST])
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == old


@pytest.mark.parametrize("kind", [0, 1], ids=["sha256", "git"])
def test_a_digest_of_either_kind_is_enough(url, path, kind):
    download([url("right")], path, ["sha256:0", digests(CONTENT)[kind]])
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "name"),  # as `git hash-object` prints it
    [(b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"), (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a")],
)
def test_the_digests_are_those_of_sha256sum_and_git(content, name):
    assert digests(content) == (f"sha256:{hashlib.sha256(content).hexdigest()}", f"git:{name}")


@pytest.fixture
def make_photos(server, tmp_path):
    """Run `make photos` in an empty folder, against this server."""

    def run(*variables):
        url = "http://{}:{}".format(*server.server_address)
        command = ["make", "-f", ROOT / "Makefile", "photos", f"PHOTOS_URL={url}", *variables]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_make_fetches_the_photographs_once(make_photos, server, tmp_path):
    for _ in range(2):
        assert make_photos(f"SHA256={DIGEST.removeprefix('sha256:')}").returncode == 0
    assert sorted(server.asked) == sorted(PHOTOS)
    assert sorted(path.name for path in (tmp_path / "images" / "photos").iterdir()) == [name[1:] for name in PHOTOS]


def test_make_accepts_only_the_assignments_photographs(make_photos, tmp_path):
    result = make_photos("--keep-going")
    assert result.returncode == 2
    assert result.stdout.count(".jpeg: FAILED") == 2
    assert not (tmp_path / "images" / "photos").exists()


def test_make_names_a_photograph_that_is_missing(make_photos, monkeypatch, tmp_path):
    monkeypatch.setitem(ANSWERS, PHOTOS[0], (404, {}, b"not here"))
    result = make_photos()
    assert result.returncode == 2
    assert "The requested URL returned error: 404" in result.stderr
    assert not (tmp_path / "images" / "photos").exists()
