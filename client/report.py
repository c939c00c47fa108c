"""What the two testers print for people: nothing in it moves a terminal or is a command to GitHub Actions."""

import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

Check = Callable[[Any], str]  # returns what it found; raises AssertionError with what was expected and what it got


def escape(text: object) -> str:
    """Return the text as one line in which what is not printable is escaped, and so is what begins a command."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return re.sub(r"(^\s*:|##)(?=[:\[])", r"\1\\", line)  # ::error or ##[error]


def print_line(text: object, file: TextIO | None = None) -> None:
    """Print the text, escaped, at once."""
    print(escape(text), file=file or sys.stdout, flush=True)


def run_checks(checks: list[tuple[str, Check]], subject: Any, *failures: type[Exception]) -> list[dict]:
    """Return name, message and whether it passed for each check of `subject`; the exceptions `failures` fail it too."""
    results = []
    expected: tuple[type[Exception], ...] = (AssertionError, *failures)
    for name, check in checks:
        try:
            passed, message = True, check(subject)
        except expected as error:
            passed, message = False, str(error)
        results.append({"name": name, "passed": passed, "message": message})
    return results


def print_results(results: list[dict], name: str, remark: str | None = None) -> bool:
    """Print a line for each check, the remark, and how many passed of the subject `name`; return whether all did."""
    for result in results:
        print_line(f"{'ok  ' if result['passed'] else 'FAIL'}  {result['name']}: {result['message']}")
    if remark:
        print_line(remark)
    passed = sum(result["passed"] for result in results)
    print_line(f"{name}: {passed} passed, {len(results) - passed} failed")
    return passed == len(results)


def assert_passes(check: tuple[str, Check], subject: Any, name: str, *failures: type[Exception]) -> None:
    """Be a test for pytest of one check. Raises AssertionError, which says of what `name` the subject is."""
    [result] = run_checks([check], subject, *failures)
    if not result["passed"]:
        raise AssertionError(escape(f"{result['name']}: {result['message']}; {name}"))
