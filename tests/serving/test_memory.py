"""Many large images, or eight of the largest bodies of any kind, at once: the memory for them is bounded.

The bodies are a quarter of the default limit, for a shorter test.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.malicious_images import SIDE, huge
from tests.server_process import TENCH, Served, ready
from tests.serving.inferences import infer_route

SIZE = 4_990_000
LIMIT_MB = 5 * 13  # see the README
LARGEST_MB = 280  # for one image of 23 million pixels, besides the process that decodes it; measured: 202
NOISE_MB = 45  # the model's first requests, and what malloc keeps

TEXTS = b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": %b}]}'
PIXELS = b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": %b}]}'

# Each body: a frame, the item that is repeated in it, and whether it is for v2.
BODIES = {
    "images": (b'{"images": ["a"%b]}', b',"a"', False),
    "images again and again": (b'{"images": []%b}', b',"images":["","",""]', False),
    "base64 with blanks": (b'{"image": "%b"}', b"ab ", False),
    "base64 in a data URL": (b'{"image": "data:image/png;base64,%b"}', b"abcd", False),
    "text of wide characters": (b'{"image": "%b\\ud83d\\ude00"}', b"a", False),
    "encoded twice, with a wide character": (b'"{\\"image\\": \\"\xf0\x9f\x98\x80%b\\"}"', b"abcd", False),
    "a form": (b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n%b\r\n--x--\r\n', b"a", False),
    "an option in a form": (b'--x\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n%b\r\n--x--', b"\xff", False),
    "outputs": (b'{"inputs": [], "outputs": [{}%b]}', b",{}", True),
    "inputs": (b'{"inputs": [{"name":"","datatype":"","shape":[]}%b]}', b',{"name":"","datatype":"","shape":[]}', True),
    "a shape": (b'{"inputs": [{"name": "", "datatype": "", "shape": [999%b]}]}', b",999", True),
    "texts": (TEXTS % b'["a"%b]', b',"a"', True),
    "a text with blanks": (TEXTS % b'["%b"]', b"ab ", True),
    "numbers": (PIXELS % b"[1%b]", b",1", True),
    "numbers for a large shape": (PIXELS.replace(b"1, 1, 1,", b"1, 1, 1000000,") % b"[1%b]", b",1", True),
    "lists": (PIXELS % b"[[]%b]", b",[]", True),
    "an id of wide characters": (b'{"inputs": [], "id": "%b\\ud83d\\ude00"}', b"a", True),
}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that accepts bodies of 5 MB."""
    with ready(tmp_path_factory.mktemp("served"), MAX_BODY_MB="5") as served:
        yield served


@pytest.fixture(scope="module")
def size_before(served: Served) -> int:
    """The server's memory in MB before the first request."""
    return size(served, "VmRSS")


def size(served: Served, what: str) -> int:
    """Return VmRSS, or VmHWM (the maximum since it was reset), in MB."""
    return int(re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{served.process.pid}/status").read_text())[1]) // 1_000


@pytest.mark.parametrize("what", BODIES)
def test_bounds_the_memory_of_eight_large_bodies(served, size_before, what):
    frame, item, v2 = BODIES[what]
    body = frame % (item * ((SIZE - len(frame)) // len(item)))
    path = infer_route(served) if v2 else "/"
    kind = "multipart/form-data; boundary=x" if body.startswith(b"--x") else "application/json"
    Path(f"/proc/{served.process.pid}/clear_refs").write_text("5")  # forgets VmHWM (proc(5))
    with ThreadPoolExecutor(8) as clients:
        calls = [clients.submit(served.post, path, data=body, headers={"Content-Type": kind}) for _ in range(8)]
    statuses = {call.result().status_code for call in calls}
    assert statuses <= {422, 503} and 422 in statuses
    assert size(served, "VmHWM") < size_before + LIMIT_MB + NOISE_MB


def test_large_images_take_turns_in_memory(tmp_path):
    def post(image: bytes) -> int:
        return served.post(data=image, headers={"Content-Type": "image/x"}).status_code

    with ready(tmp_path) as served, ThreadPoolExecutor(16) as callers:
        assert post(TENCH.read_bytes()) == 200
        idle = size(served, "VmRSS")
        statuses = set()
        for _ in range(3):  # in several threads
            statuses |= set(callers.map(post, [huge("WEBP", SIDE, SIDE)] * 5))
        assert 200 in statuses <= {200, 503}
        assert size(served, "VmHWM") < idle + LARGEST_MB
