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

from client.endpoint import Endpoint, Refused
from client.report import print_line

# What the server decodes, by the names that such files have.
SUFFIXES = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"}

ABOUT_THE_IMAGE = (408, 413, 422)  # any other refusal would be the same for every image
WIDEST, NAME_WIDTH = 60, 24  # characters of a path and of a class name in the table; what is longer juts out


def find_images(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the images, in order, and what was ignored: a folder stands for the images in it, at any depth.

    In a folder an image is known by its suffix, and what is hidden is ignored. Raises OSError for a folder that
    cannot be read.
    """
    images, ignored = [], []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        for folder, folders, files in os.walk(path, onerror=_raise):
            ignored += [Path(folder, name) for name in folders if name.startswith(".")]
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in (Path(folder, name) for name in sorted(files)):
                hidden = file.name.startswith(".")
                (images if file.suffix.lower() in SUFFIXES and not hidden else ignored).append(file)
    return images, ignored


def read_and_classify(endpoint: Endpoint, path: Path) -> dict:
    """Return `picture`, the path, and either what an Answer has or `error`. Raises EndpointDown.

    Raises Refused where the image is not to blame.
    """
    row = {"picture": str(path)}
    try:
        image = path.read_bytes()
    except OSError as error:
        return row | {"error": f"cannot be read: {error.strerror}"}
    try:
        return row | vars(endpoint.classify(image))
    except Refused as refusal:
        if refusal.status not in ABOUT_THE_IMAGE:
            raise
        return row | {"error": str(refusal)}


def classify_in_order(endpoint: Endpoint, paths: Sequence[Path], in_flight: int) -> Iterator[dict]:
    """Yield what `read_and_classify` returns for each image, in order, with so many calls at once.

    Where it raises, the calls in flight are left to themselves, so that nobody waits for them.
    """
    executor = ThreadPoolExecutor(in_flight)
    try:
        yield from executor.map(partial(read_and_classify, endpoint), paths)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def print_one(endpoint: Endpoint, path: Path) -> bool:
    """Print the image's class in a sentence; return whether it has one. Raises as `read_and_classify` does."""
    row = read_and_classify(endpoint, path)
    if "error" in row:
        print_line(f"{path}: {row['error']}", sys.stderr)
        return False
    what = f"{row['class_name']} (class {row['class_id']}, probability {row['probability']:.3f})"
    print_line(f"{path}: {what} from {endpoint.url} in {row['call_ms']:.1f} ms")
    return True


def print_many(endpoint: Endpoint, paths: list[Path], in_flight: int, as_json: bool) -> bool:
    """Print a line for each image as it comes, in order, and what they took in all; return whether each has a class.

    Where EndpointDown, Refused or Ctrl-C ends it, what was done is summed up all the same.
    """
    width = min(WIDEST, max(len(str(path)) for path in paths))
    if not as_json:
        print_line(f"{'file':<{width}}  class id  {'class name':<{NAME_WIDTH}}  probability       ms")
    started = time.perf_counter()
    done, call_ms = 0, []
    try:
        # Without a terminal there is no bar: that is what None says.
        with tqdm(total=len(paths), unit=" pictures", file=sys.stderr, disable=None, leave=False) as bar:
            for row in classify_in_order(endpoint, paths, in_flight):
                done += 1
                call_ms += [row["call_ms"]] if "call_ms" in row else []
                bar.update()
                with bar.external_write_mode():
                    if as_json:
                        print(json.dumps(row), flush=True)
                    else:
                        print_line(format_row(row, width))
    finally:
        text = f"{summarize(done, call_ms, time.perf_counter() - started)}; endpoint {endpoint.url}"
        print_line(text, sys.stderr if as_json else sys.stdout)
    return len(call_ms) == done


def format_row(row: dict, width: int) -> str:
    """Return an image's line of the table, in which its path has so many characters."""
    path = f"{row['picture']:<{width}}"
    if "error" in row:
        return f"{path}  {row['error']}"
    name = f"{row['class_name']:<{NAME_WIDTH}}"
    return f"{path}  {row['class_id']:>8}  {name}  {row['probability']:>11.3f}  {row['call_ms']:>7.1f}"


def summarize(images: int, call_ms: list[float], seconds: float) -> str:
    """Return how many of the images have a class, and how long those calls and all of it took, in words."""
    text = f"{len(call_ms)} of {images} pictures classified in {seconds:.2f} s, {len(call_ms) / seconds:.1f} a second"
    if not call_ms:
        return text
    p95 = sorted(call_ms)[math.ceil(0.95 * len(call_ms)) - 1]
    return (
        f"{text}; a call took {statistics.median(call_ms):.1f} ms in the median, "
        f"{p95:.1f} at the 95th percentile, {max(call_ms):.1f} at worst"
    )


def _raise(error: OSError) -> None:
    raise error
