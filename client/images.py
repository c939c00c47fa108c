"""Classify images with an endpoint: one, or many with concurrent requests and results in order."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from tqdm import tqdm

from client.endpoint import Endpoint, RequestRejected
from client.report import print_json, print_line

SUFFIXES = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"}  # of the formats that the server decodes
MAX_IMAGE_MB = 50  # several images are in memory at once
SENTENCE = "{class_name:.200} (class {class_id}, probability {probability:.3f}) from {url} in {request_ms:.1f} ms"
COLUMNS = "{class_id:>5}  {class_name:<20.200}  {probability:>11.3f}  {request_ms:>6.1f}"  # after the file


def find_images(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the images, in order, and the ignored files: those in a folder that are hidden or have another suffix."""
    images, ignored = list[Path](), list[Path]()
    for path in paths:
        # An error (not a folder, or not readable) makes it an image, which is reported later.
        for folder, folders, files in os.walk(path, onerror=lambda error: images.append(Path(error.filename))):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                is_image = Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
                (images if is_image else ignored).append(Path(folder, name))
    return images, ignored


def read_image(path: Path) -> bytes:
    """Return the content of an image file. Raises OSError, also for one that is too large or not a regular file."""
    if path.stat().st_size > MAX_IMAGE_MB * 10**6:
        raise OSError(f"larger than {MAX_IMAGE_MB} MB")
    if not path.is_file():
        raise OSError("not a regular file")
    return path.read_bytes()


def classify_in_order(endpoint: Endpoint, paths: Sequence[Path], in_flight: int = 1) -> Iterator[dict]:
    """Yield each path as `image` with its class or an `error`, in order. Raises errors that are not about one image."""

    def classify(path: Path) -> dict:
        row = {"image": str(path)}
        try:
            return row | endpoint.classify(read_image(path))
        except OSError as error:
            return row | {"error": f"cannot be read: {error.strerror or error}"}
        except RequestRejected as rejection:
            if rejection.status not in (408, 413, 422):  # any other status is not about the image
                raise
            return row | {"error": str(rejection)}

    # Without `with`, which would wait for the requests in flight after an error.
    return ThreadPoolExecutor(in_flight).map(classify, paths)


def print_one(endpoint: Endpoint, path: Path) -> bool:
    """Print the image's class in a sentence; return whether it has one. Raises as `classify_in_order` does."""
    [row] = classify_in_order(endpoint, [path])
    text = row.get("error") or SENTENCE.format(url=endpoint.url, **row)
    print_line(f"{path}: {text}", sys.stderr if "error" in row else sys.stdout)
    return "error" not in row


def print_many(endpoint: Endpoint, paths: list[Path], in_flight: int, as_json: bool) -> bool:
    """Print a line per image, in order, and a summary, even after an error; return whether each has a class."""
    width = max(len(str(path)) for path in paths)
    if not as_json:
        print_line(f"{'file':<{width}}  class  {'name':<20}  probability      ms")
    started = time.perf_counter()
    ms: list[float] = []
    try:
        rows = classify_in_order(endpoint, paths, in_flight)
        # `disable=None`: no progress bar without a terminal.
        for row in tqdm(rows, total=len(paths), unit=" images", disable=None, leave=False, mininterval=0):
            ms += [row["request_ms"]] if "request_ms" in row else []
            line = f"{row['image']:<{width}}  {row.get('error') or COLUMNS.format(**row)}"
            with tqdm.external_write_mode():
                print_json(row) if as_json else print_line(line)
    finally:
        file, seconds = sys.stderr if as_json else sys.stdout, time.perf_counter() - started
        summary = f"{len(ms)} of {len(paths)} images classified in {seconds:.2f} s ({len(ms) / seconds:.1f}/s)"
        print_line(f"{endpoint.url}: {summary}", file)
        if ms:
            p95 = sorted(ms)[(95 * len(ms) - 1) // 100]
            print_line(f"latency: median {median(ms):.1f} ms, 95th percentile {p95:.1f}, max {max(ms):.1f}", file)
    return len(ms) == len(paths)
