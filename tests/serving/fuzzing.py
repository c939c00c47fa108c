"""The number of examples and the starting material of the tests with hostile input."""

import base64
import os

from hypothesis import HealthCheck, settings

import runtime.decoding  # noqa: F401  # silences Pillow's warnings
from tests.malicious_images import small_images

SCALE = int(os.environ.get("FUZZ_SCALE") or 1)
SMALL = small_images()
IMAGE = base64.b64encode(SMALL["PNG"][2]).decode()


def examples(count: int) -> settings:
    """Return the settings for a test of that many examples, times FUZZ_SCALE."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    same = SCALE == 1
    return settings(
        max_examples=count * SCALE, derandomize=same, database=None, deadline=None, suppress_health_check=slow
    )
