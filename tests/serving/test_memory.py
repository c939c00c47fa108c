"""Many large images at once take no more memory than one."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.malicious_images import SIDE, huge
from tests.server_process import TENCH, Served, ready

LARGEST_MB = 600  # for one image of 25 million pixels; measured: 392


def memory_mb(served: Served, name: str) -> float:
    """Return the memory of the server in MB: current (VmRSS) or maximum (VmHWM)."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1_000


def test_large_images_take_turns_in_memory(tmp_path):
    def post(image: bytes) -> int:
        return served.post(data=image, headers={"Content-Type": "image/x"}).status_code

    with ready(tmp_path) as served, ThreadPoolExecutor(16) as callers:
        assert post(TENCH.read_bytes()) == 200
        idle = memory_mb(served, "VmRSS")
        statuses = set(callers.map(post, [huge("WEBP", SIDE, SIDE)] * 16))
        assert 200 in statuses <= {200, 503}
        assert memory_mb(served, "VmHWM") < idle + LARGEST_MB
