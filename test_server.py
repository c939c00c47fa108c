"""Test the deployed endpoint: ask it for a picture's class, or run the preset tests against it.

    python test_server.py picture.jpg                     # the picture's class, and how long the call took
    python test_server.py folder more.jpg ...             # a table of many, a few in flight at once
    python test_server.py --run-tests                     # the preset tests, and the time that a call takes
    python test_server.py --expect picture.jpg=7          # the same tests with a picture of your own
    pytest test_server.py                                 # the preset tests

The endpoint comes from --url and --api-key, or from BANANA_MODEL_URL and BANANA_API_KEY; without a URL a server is
started here for as long as it is needed. Exit codes: 0 all well; 1 a test failed; 2 wrong usage, or a picture without
a class; 3 the endpoint does not answer; 130 interrupted.
"""

import runtime.start  # noqa: F401  first, for what goes wrong in other imports

import argparse
import json
import os
import statistics
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from client.endpoint import Endpoint, EndpointDown, Refused, local_server
from client.expected import EXPECT_HELP, Preset, expected, presets
from client.images import find, print_many, print_one

# -- settings, from the environment --------------------------------------------------------------------------------
BANANA_MODEL_URL = os.environ.get("BANANA_MODEL_URL")  # the endpoint; unset: a server is started here
BANANA_API_KEY = os.environ.get("BANANA_API_KEY")  # its key; unset: none is sent
# ------------------------------------------------------------------------------------------------------------------

TIMEOUT_S = 60.0  # of one call, its retries included
WARM_CALLS = 10  # for the median and the worst time
IN_FLIGHT = 4  # calls at once for many pictures

OK, FAILED, USAGE, DOWN, INTERRUPTED = 0, 1, 2, 3, 130  # exit codes; the last is the shells' own, 128 + SIGINT

Check = Callable[[Endpoint], str]


def check_health(endpoint: Endpoint) -> str:
    """The health check says healthy, and what runs there."""
    health = endpoint.health()
    if health.get("state") != "healthy":
        raise AssertionError(f"expected state healthy, got {health}")
    return ", ".join(f"{name} {value}" for name, value in health.items())


def check_picture(preset: Preset, endpoint: Endpoint) -> str:
    """A preset picture comes out as its class."""
    answer = endpoint.classify(preset.path.read_bytes())
    return f"{preset.check(answer.class_id, answer.class_name)}, probability {answer.probability:.3f}"


def check_refusal(endpoint: Endpoint) -> str:
    """What is not a picture is refused as the caller's mistake, at once."""
    try:
        answer = endpoint.classify(b"this is not a picture")
    except Refused as refusal:
        if refusal.status == 422:
            return str(refusal)
        raise AssertionError(f"expected status 422, got {refusal}") from refusal
    raise AssertionError(f"expected status 422, got class {answer.class_id} {answer.class_name}")


def checks(known: list[Preset]) -> list[tuple[str, Check]]:
    """Return every test, with its name in the report, for these pictures."""
    pictures = [(preset.name, partial(check_picture, preset)) for preset in known]
    return [("health", check_health), *pictures, ("not a picture", check_refusal)]


def call_times(endpoint: Endpoint, picture: bytes) -> dict[str, float]:
    """Return how long a call takes, in milliseconds: the first, and the median and worst of warm ones."""
    first = endpoint.classify(picture)
    warm = [endpoint.classify(picture) for _ in range(WARM_CALLS)]
    return {
        "first": round(first.call_ms, 1),
        "median": round(statistics.median(answer.call_ms for answer in warm), 1),
        "worst": round(max(answer.call_ms for answer in warm), 1),
        "server_median": round(statistics.median(answer.server_ms for answer in warm), 1),
    }


def run_tests(endpoint: Endpoint, known: list[Preset]) -> dict:
    """Run every check and return the report; `timing_ms` is absent where no call succeeded. Raises EndpointDown."""
    report: dict = {"url": endpoint.url, "tests": []}
    try:
        report["timing_ms"] = call_times(endpoint, known[0].path.read_bytes())
    except Refused as refusal:
        report["tests"].append({"name": "calls", "passed": False, "message": str(refusal)})
    for name, check in checks(known):
        try:
            passed, message = True, check(endpoint)
        except (AssertionError, Refused) as error:
            passed, message = False, str(error)
        report["tests"].append({"name": name, "passed": passed, "message": message})
    report["passed"] = sum(test["passed"] for test in report["tests"])
    report["failed"] = len(report["tests"]) - report["passed"]
    return report


def print_report(report: dict) -> None:
    """Print what run_tests found, for people."""
    for test in report["tests"]:
        print(f"{'ok  ' if test['passed'] else 'FAIL'}  {test['name']}: {test['message']}")
    if "timing_ms" in report:
        ms = report["timing_ms"]
        print(
            f"a call takes {ms['median']} ms (median of {WARM_CALLS}; the server's share {ms['server_median']} ms), "
            f"at worst {ms['worst']} ms; the first took {ms['first']} ms"
        )
    print(f"{report['url']}: {report['passed']} passed, {report['failed']} failed")


@contextmanager
def endpoint_of(url: str | None, api_key: str | None, timeout_s: float = TIMEOUT_S) -> Iterator[Endpoint]:
    """Give the endpoint at `url`, or one started here for as long as it is used. Raises EndpointDown."""
    if url:
        yield Endpoint(url, api_key, timeout_s)
        return
    with local_server(timeout_s) as local_url:
        yield Endpoint(local_url, api_key, timeout_s)


class TestEndpoint(unittest.TestCase):
    """The preset tests for pytest, against BANANA_MODEL_URL or a server started here."""

    def test_every_check(self) -> None:
        with endpoint_of(BANANA_MODEL_URL, BANANA_API_KEY) as endpoint:
            for name, check in checks(presets()):
                with self.subTest(name):
                    try:
                        check(endpoint)
                    except AssertionError as error:
                        self.fail(f"{name}: {error}")  # pytest's report leaves the name of a subtest out


def arguments() -> argparse.Namespace:
    """Return the command line, checked; exit 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path, metavar="picture.jpg", help="pictures, or folders of such")
    parser.add_argument(
        "--in-flight", type=int, default=IN_FLIGHT, metavar="N", help="calls at once; default: %(default)s"
    )
    parser.add_argument("--run-tests", action="store_true", help="run the preset tests")
    parser.add_argument("--expect", type=expected, action="extend", metavar="PICTURE=CLASS_ID", help=EXPECT_HELP)
    parser.add_argument("--url", default=BANANA_MODEL_URL, help="the endpoint; default: $BANANA_MODEL_URL")
    parser.add_argument("--api-key", default=BANANA_API_KEY, help="its key; default: $BANANA_API_KEY")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="of a call; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON: an object a picture, or the whole report")
    given = parser.parse_args()
    if bool(given.pictures) == bool(given.run_tests or given.expect):
        parser.error("name pictures, or --run-tests or --expect")
    if given.url and not given.url.startswith(("http://", "https://")):
        parser.error(f"the endpoint's URL has to begin with http:// or https://, not {given.url!r}")
    if given.timeout <= 0:
        parser.error("--timeout has to be more than 0")
    if given.in_flight < 1:
        parser.error("--in-flight has to be at least 1")
    return given


def run_and_report(given: argparse.Namespace) -> int:
    """Run the tests and print what came; return the exit code. Raises EndpointDown."""
    with endpoint_of(given.url, given.api_key, given.timeout) as endpoint:
        report = run_tests(endpoint, given.expect or presets())
    if given.json:
        print(json.dumps(report))
    else:
        print_report(report)
    return FAILED if report["failed"] else OK


def classify_pictures(given: argparse.Namespace) -> int:
    """Print the pictures' classes; return the exit code. Raises EndpointDown or Refused."""
    try:
        paths, ignored = find(given.pictures)
    except OSError as error:
        print(f"test_server.py: {error.filename} cannot be read: {error.strerror}", file=sys.stderr)
        return USAGE
    if ignored:
        some = ", ".join(map(str, ignored[:3])) + (", ..." if len(ignored) > 3 else "")
        print(f"test_server.py: ignored {len(ignored)} that by name are no pictures: {some}", file=sys.stderr)
    if not paths:
        print(f"test_server.py: no picture in {', '.join(map(str, given.pictures))}", file=sys.stderr)
        return USAGE
    with endpoint_of(given.url, given.api_key, given.timeout) as endpoint:
        if len(paths) == 1 and paths == given.pictures and not given.json:
            well = print_one(endpoint, paths[0])
        else:
            well = print_many(endpoint, paths, given.in_flight, given.json)
    return OK if well else USAGE


def main() -> int:
    """Do what the command line says, and return the exit code."""
    given = arguments()
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        code = classify_pictures(given) if given.pictures else run_and_report(given)
        sys.stdout.flush()
        return code
    except (EndpointDown, Refused) as error:
        if given.json:
            print(json.dumps({"error": str(error)}), flush=True)
        print(f"test_server.py: {error}", file=sys.stderr)
        return DOWN if isinstance(error, EndpointDown) else USAGE
    except KeyboardInterrupt:
        print("test_server.py: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read what is printed has left, as `head` does
        return INTERRUPTED


if __name__ == "__main__":
    os._exit(main())  # sys.exit would wait for calls that are still in flight
