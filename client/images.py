"""Pictures through an endpoint: one, or many with a few in flight at once and their lines in order.

test_server.py is the command.
"""

import json
import math
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from client.endpoint import Answer, Endpoint, EndpointDown, Refused

# What the server decodes, by the names that such files have.
SUFFIXES = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"}

ABOUT_THE_PICTURE = (408, 413, 422)  # any other refusal would be the same for every picture
GIVE_UP_AFTER = 3  # pictures in a row without an answer, although the endpoint says that it is healthy
AHEAD = 256  # answers that may wait for that of an earlier picture
WIDEST, NAME_WIDTH = 60, 24  # characters of a path and of a class name in the table; what is longer juts out


@dataclass(frozen=True)
class Outcome:
    """A picture's answer, or why there is none."""

    path: Path
    answer: Answer | None = None
    error: str = ""


@dataclass
class Tally:
    """How many pictures have come out, and how long their calls and all of it took."""

    pictures: int = 0
    call_ms: list[float] = field(default_factory=list)  # of those with an answer
    started: float = field(default_factory=time.perf_counter)

    @property
    def failed(self) -> int:
        """How many have no class."""
        return self.pictures - len(self.call_ms)

    def add(self, outcome: Outcome) -> None:
        """Count it."""
        self.pictures += 1
        if outcome.answer:
            self.call_ms.append(outcome.answer.call_ms)

    def __str__(self) -> str:
        seconds = time.perf_counter() - self.started
        rate = len(self.call_ms) / seconds
        text = f"{len(self.call_ms)} of {self.pictures} pictures classified in {seconds:.2f} s, {rate:.1f} a second"
        if not self.call_ms:
            return text
        p95 = sorted(self.call_ms)[math.ceil(0.95 * len(self.call_ms)) - 1]
        median, worst = statistics.median(self.call_ms), max(self.call_ms)
        return (
            f"{text}; a call took {median:.1f} ms in the median, {p95:.1f} at the 95th percentile, {worst:.1f} at worst"
        )


def find(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the pictures, in order, and what was ignored: a folder stands for the pictures in it, at any depth.

    In a folder a picture is known by its suffix, and what is hidden is ignored. Raises OSError for a folder that
    cannot be read.
    """
    pictures, ignored = [], []
    for path in paths:
        if not path.is_dir():
            pictures.append(path)
            continue
        for folder, folders, files in os.walk(path, onerror=_raise):
            ignored += [Path(folder, name) for name in folders if name.startswith(".")]
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in (Path(folder, name) for name in sorted(files)):
                hidden = file.name.startswith(".")
                (pictures if file.suffix.lower() in SUFFIXES and not hidden else ignored).append(file)
    return pictures, ignored


def classify(endpoint: Endpoint, path: Path) -> Outcome:
    """Return the picture's answer, or what is wrong with it. Raises EndpointDown, and Refused if it is not to blame."""
    try:
        picture = path.read_bytes()
    except OSError as error:
        return Outcome(path, error=f"cannot be read: {error.strerror}")
    try:
        return Outcome(path, endpoint.classify(picture))
    except Refused as refusal:
        if refusal.status not in ABOUT_THE_PICTURE:
            raise
        return Outcome(path, error=str(refusal))


def classify_in_order(endpoint: Endpoint, paths: Sequence[Path], in_flight: int) -> Iterator[Outcome]:
    """Give each picture's outcome, in order, with so many calls at once; only the pictures of those are in memory.

    Raises EndpointDown once the endpoint is gone, and Refused as `classify` does; what is in flight is left to itself.
    """
    give_up_after = min(GIVE_UP_AFTER, len(paths))
    executor = ThreadPoolExecutor(in_flight)
    begun = ((path, executor.submit(classify, endpoint, path)) for path in paths)
    waiting = deque(islice(begun, AHEAD))
    unanswered = 0
    try:
        while waiting:
            path, future = waiting.popleft()
            try:
                outcome, unanswered = future.result(), 0
            except EndpointDown as error:
                unanswered += 1
                if unanswered == give_up_after or not _is_healthy(endpoint):
                    raise
                outcome = Outcome(path, error=str(error))
            yield outcome
            waiting.extend(islice(begun, 1))
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def print_one(endpoint: Endpoint, path: Path) -> bool:
    """Print the picture's class in a sentence; return whether it has one. Raises as `classify` does."""
    outcome = classify(endpoint, path)
    if outcome.answer is None:
        print(f"{path}: {outcome.error}", file=sys.stderr)
        return False
    answer = outcome.answer
    print(
        f"{path}: {answer.class_name} (class {answer.class_id}, probability {answer.probability:.3f}) "
        f"in {answer.call_ms:.1f} ms"
    )
    return True


def print_many(endpoint: Endpoint, paths: list[Path], in_flight: int, as_json: bool) -> bool:
    """Print a line for each picture as it comes, in order, and what they took in all; return whether each has a class.

    Raises EndpointDown or Refused where that ends it; then, and after Ctrl-C, what has come is summed up all the same.
    """
    width = min(WIDEST, max(len(str(path)) for path in paths))
    if not as_json:
        print(f"{'file':<{width}}  class id  {'class name':<{NAME_WIDTH}}  probability       ms")
    tally = Tally()
    try:
        # Without a terminal there is no bar: that is what None says.
        with tqdm(total=len(paths), unit=" pictures", file=sys.stderr, disable=None, leave=False) as bar:
            for outcome in classify_in_order(endpoint, paths, in_flight):
                tally.add(outcome)
                bar.update()
                with bar.external_write_mode():
                    print(_to_json(outcome) if as_json else _to_row(outcome, width), flush=True)
    finally:
        print(tally, file=sys.stderr if as_json else sys.stdout, flush=True)
    return not tally.failed


def _is_healthy(endpoint: Endpoint) -> bool:
    try:
        return endpoint.health().get("state") == "healthy"
    except EndpointDown:
        return False


def _raise(error: OSError) -> None:
    raise error


def _to_json(outcome: Outcome) -> str:
    return json.dumps(
        {"picture": str(outcome.path)} | (vars(outcome.answer) if outcome.answer else {"error": outcome.error})
    )


def _to_row(outcome: Outcome, width: int) -> str:
    path = f"{outcome.path!s:<{width}}"
    if outcome.answer is None:
        return f"{path}  {outcome.error}"
    answer = outcome.answer
    name = f"{answer.class_name:<{NAME_WIDTH}}"
    return f"{path}  {answer.class_id:>8}  {name}  {answer.probability:>11.3f}  {answer.call_ms:>7.1f}"
