"""The output of the two testers: nothing in it controls a terminal or is a GitHub Actions command."""

import json
import re
from collections.abc import Callable
from typing import Any, TextIO

MAX_MESSAGE = 1000  # characters
Check = tuple[str, Callable[[Any], str]]  # a name, and a function that returns a message or raises what failed


def escape(text: object) -> str:
    """Return the text as one line, with non-printable characters and the beginnings of commands escaped."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return re.sub(r"(^\s*:|##)(?=[:\[])", r"\1\\", line)  # ::error or ##[error]


def print_line(text: object, file: TextIO | None = None) -> None:
    """Print the text, escaped and flushed."""
    print(escape(text), file=file, flush=True)


def print_json(value: object) -> None:
    """Print the value as one line of JSON, with the same characters escaped."""
    print(json.dumps(value, allow_nan=False).replace("##[", "##\\u005b"), flush=True)


def run_checks(checks: list[Check], subject: Any, fatal: type[Exception] | tuple[()] = ()) -> dict[str, Any]:
    """Return `tests`, the name, message and result of each check of `subject`, and how many `passed` and `failed`."""
    tests: list[dict[str, Any]] = []
    for name, check in checks:
        try:
            has_passed, message = True, check(subject)
        except fatal:  # ends the run; any other error only fails its check
            raise
        except Exception as error:
            has_passed, message = False, getattr(error, "strerror", None) or str(error)  # OSError: without its number
        tests.append({"name": name, "passed": has_passed, "message": message[:MAX_MESSAGE]})
    passed = sum(test["passed"] for test in tests)
    return {"tests": tests, "passed": passed, "failed": len(tests) - passed}


def print_report(report: dict[str, Any], subject: str) -> None:
    """Print a line per test, and how many tests of `subject` passed."""
    for test in report["tests"]:
        print_line(f"{'ok  ' if test['passed'] else 'FAIL'}  {test['name']}: {test['message']}")
    print_line(f"{subject}: {report['passed']} passed, {report['failed']} failed")
