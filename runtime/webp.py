"""Decode a WebP in a process of limited memory, unless it is known to need little.

A lossless image, or a compressed alpha channel, has groups of five Huffman tables: at most one for each 4x4 pixels. A
group can be a few bits in the file and kilobytes in memory: 300 KB need 400 MB. How many there are is only known after
decoding what precedes them: https://developers.google.com/speed/webp/docs/webp_lossless_bitstream_specification
"""

import math
import os
import subprocess
import sys
from pathlib import Path

from runtime.cpu_budget import CpuBudget
from runtime.errors import Unavailable

GROUP_BYTES = 21_000  # in memory, at most: with the largest color cache
GROUP_BITS = 20  # in the file, at least: five codes of one symbol, each of 4 bits
UNCHECKED_GROUPS = 1_000  # libwebp allocates up to this many for a smaller image, too
MAX_TABLE_BYTES = 64_000_000  # encoders write at most 2,600 groups


def table_bytes(data: bytes, width: int, height: int) -> int:
    """Return the memory for tables, at most MAX_TABLE_BYTES: a file that may need more must be decoded by `decode`."""
    if b"VP8L" not in data and b"ALPH" not in data:
        return 0
    blocks = math.ceil(width / 4) * math.ceil(height / 4)
    groups = min(max(UNCHECKED_GROUPS, blocks), len(data) * 8 // GROUP_BITS)
    return min(groups * GROUP_BYTES, MAX_TABLE_BYTES)


def decode(data: bytes, max_bytes: int, budget: CpuBudget) -> bytes:
    """Return the pixels of the first frame, decoded by webp_process.py.

    Raises ValueError if it fails, also because it needs more memory than `max_bytes`, InvalidInput or Unavailable.
    """
    script = Path(__file__).with_name("webp_process.py")
    limits = [str(max_bytes), str(math.ceil(budget.remaining_s))]
    before = os.times()
    try:
        # -P: Python looks for no modules next to the script, where runtime's have common names.
        process = subprocess.run([sys.executable, "-P", script, *limits], input=data, capture_output=True)
    except OSError as error:
        raise Unavailable(f"the process that decodes a WebP cannot be started: {error}") from error
    after = os.times()  # no other process ends meanwhile: only large images need one, and these take turns
    budget.spend(after.children_user + after.children_system - before.children_user - before.children_system)
    if process.returncode != 0:
        raise ValueError(f"it is damaged, or needs over {max_bytes // 1_000_000} MB: save it as PNG or JPEG")
    return process.stdout
