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
import atexit
import json
import os
import statistics
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from client.endpoint import TIMEOUT_S, Endpoint, EndpointUnavailable, RequestRejected, local_server
from client.images import find_images, print_many, print_one
from client.labeled_images import EXPECT_HELP, LabeledImage, parse_expectation, presets
from client.report import Check, escape, print_line, print_report, run_checks
from runtime.settings import BadSetting, EndpointSettings, read

WARM_CALLS = 10  # for the median and the worst time
NO_ENDPOINT = "test_server.py: without --url and BANANA_MODEL_URL this tests a server of its own, started here"
OK, FAILED, USAGE, DOWN, INTERRUPTED = 0, 1, 2, 3, 130  # exit codes; the last is the shells' own, 128 + SIGINT


def check_health(endpoint: Endpoint) -> str:
    """The health check says healthy, and what runs there."""
    health = endpoint.health()
    if health.get("state") != "healthy":
        raise AssertionError(f"expected state healthy, got {health}")
    return ", ".join(f"{name} {value}" for name, value in health.items())


def check_image(preset: LabeledImage, endpoint: Endpoint) -> str:
    """A preset image comes out as its class."""
    return preset.check(endpoint.classify(preset.path.read_bytes()))


def check_refusal(endpoint: Endpoint) -> str:
    """What is not an image is refused as the caller's mistake, at once."""
    try:
        actual = "class {class_id} {class_name}".format(**endpoint.classify(b"this is not a picture"))
    except RequestRejected as refusal:
        if refusal.status == 422:
            return str(refusal)
        actual = str(refusal)
    raise AssertionError(f"expected status 422, got {actual}")


def get_checks(known: list[LabeledImage]) -> list[Check]:
    """Return every check, for these images."""
    images = [(preset.name, partial(check_image, preset)) for preset in known]
    return [("health", check_health), *images, ("not a picture", check_refusal)]


def time_calls(endpoint: Endpoint, image: bytes) -> dict[str, float]:
    """Return how long a call takes, in milliseconds: the first, and the median and worst of warm ones."""
    first, *warm = [endpoint.classify(image) for _ in range(1 + WARM_CALLS)]
    return {
        "first": round(first["call_ms"], 1),
        "median": round(statistics.median(answer["call_ms"] for answer in warm), 1),
        "worst": round(max(answer["call_ms"] for answer in warm), 1),
        "server_median": round(statistics.median(answer["server_ms"] for answer in warm), 1),
    }


def print_tests(endpoint: Endpoint, known: list[LabeledImage], as_json: bool) -> bool:
    """Time the calls, run every check, and print the report; return whether all passed. Raises EndpointUnavailable."""
    report: dict = {"url": endpoint.url}
    times = ""
    with suppress(RequestRejected):  # which the check of the same image reports
        ms = report["timing_ms"] = time_calls(endpoint, known[0].path.read_bytes())
        times = (
            f"a call takes {ms['median']} ms (median of {WARM_CALLS}; the server's share {ms['server_median']} ms), "
            f"at worst {ms['worst']} ms; the first took {ms['first']} ms"
        )
    report |= run_checks(get_checks(known), endpoint, RequestRejected)
    if as_json:
        print(json.dumps(report), flush=True)
    else:
        print_report(report, endpoint.url, times)
    return report["failed"] == 0


def open_endpoint(settings: EndpointSettings, timeout_s: float = TIMEOUT_S) -> AbstractContextManager[Endpoint]:
    """Give the endpoint of the settings, or one started here while the context lasts. Raises EndpointUnavailable."""
    url, key = settings.BANANA_MODEL_URL, settings.BANANA_API_KEY
    return nullcontext(Endpoint(url, key, timeout_s)) if url else local_server(key, timeout_s)


# The next three are for pytest, without importing it: the command would have to wait for that.
def pytest_generate_tests(metafunc: Any) -> None:
    """Make each check a test of its own, which names the endpoint."""
    url = os.environ.get("BANANA_MODEL_URL", "").strip()
    if not url:
        with metafunc.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{NO_ENDPOINT}", file=sys.stderr)
    checks = get_checks(presets())
    metafunc.parametrize("check", checks, ids=[f"{name} of {url or 'a server started here'}" for name, _ in checks])


@cache
def open_once() -> Endpoint:
    """Return the endpoint of all tests."""
    context = ExitStack()
    atexit.register(context.close)
    return context.enter_context(open_endpoint(read(EndpointSettings)))


def test_endpoint(check: Check) -> None:
    """The check passes."""
    endpoint = open_once()
    [test] = run_checks([check], endpoint, RequestRejected, EndpointUnavailable)["tests"]
    assert test["passed"], escape(f"{test['name']}: {test['message']}; {endpoint.url}")


def parse_args() -> argparse.Namespace:
    """Return the command line, with the `settings` and the files `found` and `ignored`; exit 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, metavar="picture.jpg", help="pictures, or folders of such")
    parser.add_argument("--in-flight", type=int, default=4, metavar="N", help="calls at once; default: %(default)s")
    parser.add_argument("--run-tests", action="store_true", help="run the preset tests")
    parser.add_argument(
        "--expect", type=parse_expectation, action="append", metavar="PICTURE=CLASS_ID", help=EXPECT_HELP
    )
    parser.add_argument("--url", metavar="BANANA_MODEL_URL", help="the endpoint, in place of the variable's")
    parser.add_argument("--api-key", metavar="BANANA_API_KEY", help="its key, in place of the variable's")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="of a call; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON: an object a picture, or the whole report")
    parser.set_defaults(url=os.environ.get("BANANA_MODEL_URL", ""), api_key=os.environ.get("BANANA_API_KEY", ""))
    args = parser.parse_args()
    if bool(args.images) == bool(args.run_tests or args.expect):
        parser.error("name pictures, or --run-tests or --expect")
    if args.in_flight < 1 or not 0 < args.timeout <= 3600:
        parser.error("--in-flight has to be at least 1, and --timeout more than 0 and at most 3600")
    try:
        args.settings = read(EndpointSettings, {"BANANA_MODEL_URL": args.url, "BANANA_API_KEY": args.api_key})
    except BadSetting as error:
        parser.error(str(error))
    args.found, args.ignored = find_images(args.images)
    if args.images and not args.found:
        parser.error(f"no picture in {', '.join(map(str, args.images))}")
    return args


def main() -> int:
    """Do what the command line says, and return the exit code."""
    args = parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # not every encoding has every name
    if not args.settings.BANANA_MODEL_URL:
        print(NO_ENDPOINT, file=sys.stderr)
    if args.ignored:
        some = ", ".join(map(str, args.ignored[:3])) + (", ..." if len(args.ignored) > 3 else "")
        print_line(f"test_server.py: ignored {len(args.ignored)} that by name are no pictures: {some}", sys.stderr)
    try:
        with open_endpoint(args.settings, args.timeout) as endpoint:
            if not args.images:
                return OK if print_tests(endpoint, args.expect or presets(), args.json) else FAILED
            if args.found == args.images[:1] and not args.json:
                return OK if print_one(endpoint, args.found[0]) else USAGE
            return OK if print_many(endpoint, args.found, args.in_flight, args.json) else USAGE
    except (EndpointUnavailable, RequestRejected) as error:
        if args.json:
            print(json.dumps({"error": str(error)}), flush=True)
        for line in f"test_server.py: {error}".split("\n"):
            print_line(line, sys.stderr)
        return DOWN if isinstance(error, EndpointUnavailable) else USAGE
    except BrokenPipeError:  # whoever read what is printed has left, as `head` does
        return INTERRUPTED


if __name__ == "__main__":
    os._exit(main())  # sys.exit would wait for calls that are still in flight
