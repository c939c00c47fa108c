"""Test the deployed endpoint: ask it for a picture's class, or run the preset tests against it.

    python test_server.py picture.jpg [more.jpg ...]      # each picture's class, and how long the call took
    python test_server.py --run-tests                     # the preset tests, and the time that a call takes
    pytest test_server.py                                 # the same preset tests

The endpoint comes from --url and --api-key, or from BANANA_MODEL_URL and BANANA_API_KEY; without a URL a server is
started here for as long as it is needed. Exit codes: 0 all well; 1 a test failed; 2 wrong usage, or a picture that
cannot be read; 3 the endpoint does not answer.
"""

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

from endpoint import Endpoint, EndpointDown, Refused, local_server
from presets import Preset, presets

# -- settings, from the environment --------------------------------------------------------------------------------
BANANA_MODEL_URL = os.environ.get("BANANA_MODEL_URL")  # the endpoint; unset: a server is started here
BANANA_API_KEY = os.environ.get("BANANA_API_KEY")  # its key; unset: none is sent
# ------------------------------------------------------------------------------------------------------------------

TIMEOUT_S = 60.0  # of one call, its retries included
WARM_CALLS = 10  # for the median and the worst time

OK, FAILED, USAGE, DOWN = range(4)  # exit codes


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


Check = Callable[[Endpoint], str]


def checks() -> dict[str, Check]:
    """Return every preset test by its name in the report."""
    pictures = {preset.name: partial(check_picture, preset) for preset in presets()}
    return {"health": check_health} | pictures | {"not a picture": check_refusal}


def call_times(endpoint: Endpoint) -> dict[str, float]:
    """Return how long a call takes, in milliseconds: the first, and the median and worst of warm ones."""
    picture = presets()[0].path.read_bytes()
    first = endpoint.classify(picture)
    warm = [endpoint.classify(picture) for _ in range(WARM_CALLS)]
    return {
        "first": round(first.call_ms, 1),
        "median": round(statistics.median(answer.call_ms for answer in warm), 1),
        "worst": round(max(answer.call_ms for answer in warm), 1),
        "server_median": round(statistics.median(answer.server_ms for answer in warm), 1),
    }


def run_tests(endpoint: Endpoint) -> dict:
    """Run every check and return the report; `timing_ms` is absent where no call succeeded. Raises EndpointDown."""
    report: dict = {"url": endpoint.url, "tests": []}
    try:
        report["timing_ms"] = call_times(endpoint)
    except Refused as refusal:
        report["tests"].append({"name": "calls", "passed": False, "message": str(refusal)})
    for name, check in checks().items():
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


def classify_pictures(endpoint: Endpoint, paths: list[Path], as_json: bool) -> int:
    """Print each picture's class, and return the exit code. A bad picture does not stop the rest."""
    code = OK
    for path in paths:
        try:
            answer = endpoint.classify(path.read_bytes())
        except OSError as error:
            print(f"{path}: cannot be read: {error.strerror}", file=sys.stderr)
            code = USAGE
        except Refused as refusal:
            print(f"{path}: {refusal}", file=sys.stderr)
            code = USAGE
        else:
            line = f"{path}: {answer.class_name} (class {answer.class_id}, probability {answer.probability:.3f})"
            print(
                json.dumps({"picture": str(path), **vars(answer)}) if as_json else f"{line} in {answer.call_ms:.1f} ms",
                flush=True,
            )
    return code


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
            for name, check in checks().items():
                with self.subTest(name):
                    try:
                        check(endpoint)
                    except AssertionError as error:
                        self.fail(f"{name}: {error}")  # pytest's report leaves the name of a subtest out


def arguments() -> argparse.Namespace:
    """Return the command line, checked; exit 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path, metavar="picture.jpg", help="pictures to classify")
    parser.add_argument("--run-tests", action="store_true", help="run the preset tests")
    parser.add_argument("--url", default=BANANA_MODEL_URL, help="the endpoint; default: $BANANA_MODEL_URL")
    parser.add_argument("--api-key", default=BANANA_API_KEY, help="its key; default: $BANANA_API_KEY")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="of a call; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON: an object a picture, or the whole report")
    given = parser.parse_args()
    if bool(given.pictures) == given.run_tests:
        parser.error("name pictures, or --run-tests")
    if given.url and not given.url.startswith(("http://", "https://")):
        parser.error(f"the endpoint's URL has to begin with http:// or https://, not {given.url!r}")
    if given.timeout <= 0:
        parser.error("--timeout has to be more than 0")
    return given


def main() -> int:
    """Do what the command line says, and return the exit code."""
    given = arguments()
    try:
        with endpoint_of(given.url, given.api_key, given.timeout) as endpoint:
            if not given.run_tests:
                return classify_pictures(endpoint, given.pictures, given.json)
            report = run_tests(endpoint)
    except EndpointDown as error:
        print(f"test_server.py: {error}", file=sys.stderr)
        return DOWN
    if given.json:
        print(json.dumps(report))
    else:
        print_report(report)
    return FAILED if report["failed"] else OK


if __name__ == "__main__":
    sys.exit(main())
