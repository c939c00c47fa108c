"""Decodes the WebP on stdin; the pixels of its first frame go to stdout, its seconds of CPU time to stderr.

A script that webp.py starts. Its arguments are the most bytes of memory and seconds of CPU time that it may use; only
Linux enforces the former.
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
