"""Decode a WebP that has lossless parts in a process of limited memory and CPU time.

A lossless image, or a compressed alpha channel, can have five Huffman tables for every 4x4 pixels. They can be a few
bits in the file and kilobytes in memory: 300 KB need 400 MB. How many there are is only known after decoding what
precedes them: https://developers.google.com/speed/webp/docs/webp_lossless_bitstream_specification
"""

import math
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen

from runtime.errors import Unavailable

LOSSLESS_PARTS = (b"VP8L", b"ALPH")  # their names, which compressed data may hold by chance
PROCESS_BYTES = 16_000_000  # in addition to the pixels: 5 MB for Python; a photograph's tables take less than 1 MB


def decode(data: bytes, max_bytes: int, max_seconds: float) -> tuple[bytes, float]:
    """Return the pixels of the first frame, decoded by webp_process.py, and the seconds of CPU time that it took.

    It may use `max_bytes` of memory and about `max_seconds`, at least 0. Raises ValueError if it fails, or Unavailable.
    """
    script = str(Path(__file__).with_name("webp_process.py"))
    # -P: the modules next to the script are not to be found by their short names.
    command = [sys.executable, "-P", script, str(max_bytes), str(math.ceil(max_seconds))]
    try:
        process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    except OSError as error:
        raise Unavailable(f"the process that decodes a WebP cannot be started: {error}") from error
    with process:
        # Not communicate(), which reads thousands of pieces: each thread would keep their memory.
        with suppress(BrokenPipeError), process.stdin:  # it may have ended already
            process.stdin.write(data)
        pixels, seconds = process.stdout.read(), process.stderr.read()
    if process.returncode != 0:
        raise ValueError("it is damaged, or takes too much memory or time: save it as PNG or JPEG")
    return pixels, float(seconds.split()[-1])
