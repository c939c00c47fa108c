"""Test the deployed endpoint: classify images with it, or run the preset tests against it.

    python test_server.py image.jpg                       # the image's class and the latency
    python test_server.py folder more.jpg ...             # a table of many images, a few requests at a time
    python test_server.py --run-tests                     # the preset tests and the latency
    python test_server.py --expect image.jpg=7            # the same tests with your own image
    pytest test_server.py                                 # the preset tests

The endpoint is set by --url and --api-key, or by BANANA_MODEL_URL and BANANA_API_KEY. Without a URL, a server runs on
this machine for as long as it is needed. Exit codes: 0 success; 1 a test failed; 2 wrong usage, or an image was not
classified; 3 the endpoint is unavailable; 130 interrupted.
"""

import runtime.startup_errors  # reports an old Python, a missing package or Ctrl-C in one line

import argparse
import os
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from client.endpoint import TIMEOUT_S, Endpoint, EndpointUnavailable, RequestRejected, local_server
from client.images import classify_in_order, find_images, print_many, print_one, read_image
from client.labeled_images import EXPECT_HELP, LabeledImage, parse_expectation, presets
from client.report import Check, escape, print_json, print_line, print_report, run_checks
from runtime.settings import BadSetting, EndpointSettings, read

REQUESTS = 10  # sent one by one to measure the latency, and then all at once
SUCCESS, FAILED, USAGE, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 130  # exit codes
NOT_CLASSIFIED = USAGE


# Each check raises an error if it fails, and otherwise returns a message. `--run-tests` and pytest run the same checks.
def check_health(endpoint: Endpoint) -> str:
    """Check that the endpoint reports that it is healthy; return what runs there."""
    health = endpoint.health()
    if health.get("state") != "healthy":
        raise AssertionError(f"expected state healthy, got {health}")
    return ", ".join(f"{name} {value}" for name, value in health.items())


def check_image(image: LabeledImage, endpoint: Endpoint) -> str:
    """Check that the image is classified correctly; return the result."""
    return image.check(endpoint.classify(read_image(image.path)))


def check_concurrency(image: LabeledImage, endpoint: Endpoint) -> str:
    """Check that concurrent requests all get a class; return how many, and the slowest's latency."""
    rows = list(classify_in_order(endpoint, [image.path] * REQUESTS, REQUESTS))
    if errors := [row["error"] for row in rows if "error" in row]:
        raise AssertionError(f"{len(errors)} of {len(rows)} failed: {errors[0]}")
    return f"{len(rows)} classified, max {max(row['request_ms'] for row in rows):.1f} ms"


def check_rejection(endpoint: Endpoint, status: int = 422) -> str:
    """Check that the endpoint rejects text in place of an image with `status`; return its message."""
    try:
        result = endpoint.classify(b"this is not an image")
    except RequestRejected as rejection:
        if rejection.status == status:
            return str(rejection)
        raise AssertionError(f"expected status {status}, got {rejection}") from rejection
    raise AssertionError(f"expected status {status}, got class {result['class_id']} {result['class_name']}")


def get_checks(images: list[LabeledImage], api_key: str | None) -> list[Check]:
    """Return every check, with these images. With a key, a request without it must be rejected."""
    checks: list[Check] = [("health", check_health), *((image.name, partial(check_image, image)) for image in images)]
    checks += [("concurrent requests", partial(check_concurrency, images[0])), ("not an image", check_rejection)]
    if api_key:
        checks += [("no API key", lambda endpoint: check_rejection(replace(endpoint, api_key=None), 401))]
    return checks


def measure_latency(endpoint: Endpoint, image: bytes) -> dict[str, float]:
    """Return the latency in milliseconds: of the first request, and the median and maximum of later ones."""
    first, *later = [endpoint.classify(image) for _ in range(1 + REQUESTS)]
    ms = [result["request_ms"] for result in later]
    server_median = median(result["server_ms"] for result in later)
    return {"first": first["request_ms"], "median": median(ms), "max": max(ms), "server_median": server_median}


def run_tests(endpoint: Endpoint, images: list[LabeledImage], as_json: bool) -> bool:
    """Print the latency and the result of every check; return whether all passed. Raises EndpointUnavailable."""
    report: dict = {"url": endpoint.url}
    with suppress(RequestRejected, OSError):  # the same image's check reports it
        ms = report["timing_ms"] = measure_latency(endpoint, read_image(images[0].path))
        latency = f"latency: median {ms['median']:.1f} ms over {REQUESTS} requests (server {ms['server_median']:.1f})"
        if not as_json:
            print_line(f"{latency}, max {ms['max']:.1f}, first {ms['first']:.1f}")
    report |= run_checks(get_checks(images, endpoint.api_key), endpoint, fatal=EndpointUnavailable)
    if as_json:
        print_json(report)
    else:
        print_report(report, endpoint.url)
    return report["failed"] == 0


def open_endpoint(settings: EndpointSettings, timeout_s: float = TIMEOUT_S) -> AbstractContextManager[Endpoint]:
    """Return the endpoint in the settings, or a server on this machine. Raises EndpointUnavailable."""
    if settings.BANANA_MODEL_URL:
        return nullcontext(Endpoint(settings.BANANA_MODEL_URL.rstrip("/"), settings.BANANA_API_KEY, timeout_s))
    print("test_server.py: no --url or BANANA_MODEL_URL: testing a server started on this machine", file=sys.stderr)
    return local_server(settings.BANANA_API_KEY, timeout_s)


def test_endpoint(subtests: Any, capsys: Any) -> None:
    """Run the checks under pytest, each as a subtest. pytest passes `subtests` and `capsys`."""
    with capsys.disabled(), open_endpoint(read(EndpointSettings)) as endpoint:
        for test in run_checks(get_checks(presets(), endpoint.api_key), endpoint)["tests"]:
            with subtests.test(f"{test['name']} of {endpoint.url}"):
                assert test["passed"], escape(test["message"])


def parse_args() -> argparse.Namespace:
    """Return the options, the `settings`, and the files `found` and `ignored`; exit with code 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", nargs="*", type=Path, metavar="image.jpg", help="images, or folders of images")
    add("--in-flight", type=int, default=4, metavar="N", help="concurrent requests; default: %(default)s")
    add("--run-tests", action="store_true", help="run the preset tests")
    add("--expect", type=parse_expectation, action="append", metavar="IMAGE=CLASS_ID", help=EXPECT_HELP)
    add("--url", default=os.environ.get("BANANA_MODEL_URL", ""), help="the endpoint; default: $BANANA_MODEL_URL")
    add("--api-key", default=os.environ.get("BANANA_API_KEY", ""), help="the endpoint's key; default: $BANANA_API_KEY")
    add("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="seconds per request; default: %(default)s")
    add("--json", action="store_true", help="print JSON: an object per image with its class or `error`, or the report")
    args = parser.parse_args()
    if bool(args.images) == bool(args.run_tests or args.expect):  # neither, or both
        parser.error("give either images, or --run-tests/--expect")
    if args.in_flight < 1 or not 0 < args.timeout <= 3600:
        parser.error("--in-flight must be at least 1, and --timeout more than 0 and at most 3600")
    try:
        args.settings = read(EndpointSettings, {"BANANA_MODEL_URL": args.url, "BANANA_API_KEY": args.api_key})
    except BadSetting as error:
        parser.error(str(error))
    args.found, args.ignored = find_images(args.images)
    if args.images and not args.found:
        parser.error(f"no images found in {', '.join(map(str, args.images))}")
    return args


def main() -> int:
    """Run the tests or classify the images; return the exit code."""
    args = parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # for encodings other than UTF-8
    if args.ignored:
        print_line(f"ignored {len(args.ignored)} files that are not images, such as {args.ignored[0]}", sys.stderr)
    try:
        with open_endpoint(args.settings, args.timeout) as endpoint:
            if not args.images:
                return SUCCESS if run_tests(endpoint, args.expect or presets(), args.json) else FAILED
            if len(args.images) == 1 and not args.images[0].is_dir() and not args.json:
                return SUCCESS if print_one(endpoint, args.found[0]) else NOT_CLASSIFIED
            return SUCCESS if print_many(endpoint, args.found, args.in_flight, args.json) else NOT_CLASSIFIED
    except (EndpointUnavailable, RequestRejected) as error:
        if args.json:
            print_json({"error": str(error)})
        print_line(f"test_server.py: {error}", sys.stderr)
        return UNAVAILABLE if isinstance(error, EndpointUnavailable) else NOT_CLASSIFIED
    except BrokenPipeError:  # the reader of the output exited, as `head` does
        return INTERRUPTED


if __name__ == "__main__":
    os._exit(main())  # not sys.exit, which waits for requests in flight; every line printed is flushed
