"""Script of webp.py: decodes the WebP on stdin; pixels of the first frame go to stdout, seconds of CPU time to stderr.

The arguments are its limits, which only Linux sets: bytes of memory and seconds of CPU time.
"""

import sys
import time

from PIL import _webp

if sys.platform == "linux":
    import resource

    for limit, most in zip((resource.RLIMIT_DATA, resource.RLIMIT_CPU), map(int, sys.argv[1:]), strict=True):
        resource.setrlimit(limit, (most, most))
pixels, _ = _webp.WebPAnimDecoder(sys.stdin.buffer.read()).get_next()
sys.stdout.buffer.write(pixels)
sys.stderr.write(str(time.process_time()))
