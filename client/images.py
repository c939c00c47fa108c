"""Images through an endpoint: one, or many with a few calls in flight at once and their lines in order."""

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from client.endpoint import Endpoint, RequestRejected
from client.report import escape, print_line

# What the server decodes, by the names that such files have.
SUFFIXES = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"}

# Of the table, behind the file; a class name longer than its column juts out.
COLUMNS = "{class_id:>8}  {class_name:<24}  {probability:>11.3f}  {call_ms:>7.1f}"


def find_images(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the images, in order, and what was ignored: a folder stands for the images in it, at any depth.

    In a folder an image is known by its suffix, and what is hidden is ignored. What is no folder is taken as an image,
    and so is a folder that cannot be read: its line says why.
    """
    images, ignored = [], []
    for path in paths:
        for folder, folders, files in os.walk(path, onerror=lambda error: images.append(Path(error.filename))):
            ignored += [Path(folder, name) for name in folders if name.startswith(".")]
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                is_image = Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
                (images if is_image else ignored).append(Path(folder, name))
    return images, ignored


def read_and_classify(endpoint: Endpoint, path: Path) -> dict:
    """Return `picture`, the path, with its class or an `error`.

    Raises EndpointUnavailable, and RequestRejected for what would be rejected for every image.
    """
    row = {"picture": str(path)}
    try:
        return row | endpoint.classify(path.read_bytes())
    except OSError as error:
        return row | {"error": f"cannot be read: {error.strerror}"}
    except RequestRejected as refusal:
        if refusal.status not in (408, 413, 422):  # any other would be the same for every image
            raise
        return row | {"error": str(refusal)}


def classify_in_order(endpoint: Endpoint, paths: Sequence[Path], in_flight: int) -> Iterator[dict]:
    """Yield what `read_and_classify` returns for each image, in order, with so many calls at once.

    Where it raises, no more calls begin, and nobody waits for those in flight, as at the end of a `with` one would.
    """
    return ThreadPoolExecutor(in_flight).map(partial(read_and_classify, endpoint), paths)


def print_one(endpoint: Endpoint, path: Path) -> bool:
    """Print the image's class in a sentence; return whether it has one. Raises as `read_and_classify` does."""
    row = read_and_classify(endpoint, path)
    if "error" in row:
        print_line(f"{path}: {row['error']}", sys.stderr)
    else:
        what = "{class_name} (class {class_id}, probability {probability:.3f})".format(**row)
        print_line(f"{path}: {what} from {endpoint.url} in {row['call_ms']:.1f} ms")
    return "error" not in row


def print_many(endpoint: Endpoint, paths: list[Path], in_flight: int, as_json: bool) -> bool:
    """Print a line for each image as it comes, in order, and what they took in all; return whether each has a class.

    Where EndpointUnavailable, RequestRejected or Ctrl-C ends it, what was done is summed up all the same.
    """
    width = max(len(str(path)) for path in paths)
    if not as_json:
        print_line(f"{'file':<{width}}  class id  {'class name':<24}  probability       ms")
    started = time.perf_counter()
    call_ms: list[float | None] = []  # None: the image has no class
    try:
        # Without a terminal there is no bar: that is what None says.
        with tqdm(total=len(paths), unit=" pictures", file=sys.stderr, disable=None, leave=False) as bar:
            for row in classify_in_order(endpoint, paths, in_flight):
                call_ms.append(row.get("call_ms"))
                line = f"{row['picture']:<{width}}  {row.get('error') or COLUMNS.format(**row)}"
                bar.update()
                with bar.external_write_mode():
                    print(json.dumps(row) if as_json else escape(line), flush=True)
    finally:
        text = f"{summarize(call_ms, time.perf_counter() - started)}; endpoint {endpoint.url}"
        print_line(text, sys.stderr if as_json else sys.stdout)
    return None not in call_ms


def summarize(call_ms: list[float | None], seconds: float) -> str:
    """Return how many of the images have a class, and how long those calls and all of it took, in words."""
    ms = sorted(each for each in call_ms if each is not None)
    text = f"{len(ms)} of {len(call_ms)} pictures classified in {seconds:.2f} s, {len(ms) / seconds:.1f} a second"
    if ms:
        p95 = ms[math.ceil(0.95 * len(ms)) - 1]
        times = f"{statistics.median(ms):.1f} ms in the median, {p95:.1f} at the 95th percentile, {ms[-1]:.1f} at worst"
        text += f"; a call took {times}"
    return text
