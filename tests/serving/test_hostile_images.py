"""Any image is a 200, 413 or 422 in bounded time, and the server's memory does not grow.

FUZZ_SCALE (default 1) multiplies the number of examples. With 1 they are the same in every run; with more, as in
`make fuzz`, they differ.
"""

import base64
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import decoding
from tests.malicious_images import BOMBS, PNG_SIGNATURE, SIDE, huge, lying, with_right_checksums
from tests.serving.conftest import Ask
from tests.serving.fuzzing import SMALL, examples

KEPT_MB = 25  # that the server may grow when everything is sent again


# -- images --------------------------------------------------------------------------------------------------------

edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "drop", "repeat"]),
        st.integers(0, 80) | st.integers(0, 5_000),
        st.sampled_from([b"\0", b"\xff", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"]) | st.binary(max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """Return the data with these edits made to it."""
    for what, at, value in edits:
        at %= len(data) + 1
        if what == "flip":
            value = bytes(byte ^ 1 << len(value) % 8 for byte in data[at : at + 1])
        if what == "repeat":
            value = data[at : at + 8 * len(value)] * 2
        length = {"cut": len(data), "drop": 4}.get(what, len(value))
        data = data[:at] + (b"" if what in ("cut", "drop") else value) + data[at + length :]
    return data


@pytest.mark.parametrize("file_format", decoding.FORMATS)
@examples(55)
@given(data=st.data(), edits=edits, checksums=st.booleans())
def test_survives_edited_images(ask, file_format, data, edits, checksums):
    image = edited(data.draw(st.sampled_from(SMALL[file_format])), edits)
    ask(with_right_checksums(image) if checksums and image.startswith(PNG_SIGNATURE) else image)


@pytest.mark.parametrize("file_format", decoding.FORMATS)
def test_survives_cut_images_and_flipped_bits(ask, file_format):
    image = SMALL[file_format][0]
    for at in range(0, len(image) - 1, max(1, len(image) // 20)):
        ask(image[:at])
        ask(image[:at] + bytes([image[at] ^ 1 << at % 8]) + image[at + 1 :])
    assert ask(image[: len(image) // 4]) == 422


@pytest.mark.parametrize("file_format", decoding.FORMATS)
def test_survives_images_with_a_false_size(ask, file_format):
    image = SMALL[file_format][0]
    for size in [(0, 0), (1, 1), (8, 8), (24, 0), (0, 18), (25, 19), (5_000, 5_000), (24, 65_535), (65_535, 1)]:
        ask(lying(file_format, image, *size))
    assert ask(lying(file_format, image, 2**32, 2**32)) == 422


@pytest.mark.parametrize("file_format", decoding.FORMATS)
def test_bounds_the_size_of_decoded_images(ask, file_format):
    assert ask(huge(file_format, SIDE, SIDE)) == 200
    assert ask(lying(file_format, SMALL[file_format][0], 65_500, 65_500)) == 422


@pytest.fixture(scope="module")
def bombs(ask: Ask) -> dict[str, tuple[bytes, int]]:
    """Each bomb, with the status of its response."""
    made = {what: make() for what, (_, make) in BOMBS.items()}
    return {what: (bomb, ask(bomb)) for what, bomb in made.items()}


@pytest.mark.parametrize("what", BOMBS)
def test_survives_bombs(bombs, what):
    assert bombs[what][1] == BOMBS[what][0]


# -- afterwards ------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_hostile_images(served, ask, bombs):
    others = [huge(name, 2_000, 2_000) for name in decoding.FORMATS]
    others += [lying(name, SMALL[name][0], 9, 9) for name in decoding.FORMATS] + [b"no image", b""]

    def size_after(images: list[bytes]) -> int:
        for image in images:
            ask(image)
            ask(json.dumps({"image": base64.b64encode(image[:100_000]).decode()}).encode(), "application/json")
        status = Path(f"/proc/{served.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) // 1_000

    first = size_after(others)
    assert size_after([bomb for bomb, _ in bombs.values()] + others) < first + KEPT_MB
