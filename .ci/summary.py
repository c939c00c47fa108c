"""Say in Markdown what a folder of reports holds, for the summary of a job or for a person at home.

    python .ci/summary.py reports

*.xml is pytest's JUnit file, *.json the report of `test_server.py --run-tests --json`, and *.log the last words of a
command that failed before there was either.
"""

import html
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

LOG_LINES = 30
CELL_CHARACTERS = 500


def cell(text: str) -> str:
    """Return text as one cell of a table: on one line, and nothing in it is markup."""
    line = " ".join(text.split())
    line = line if len(line) <= CELL_CHARACTERS else f"{line[:CELL_CHARACTERS]} …"
    return html.escape(line, quote=False).replace("|", "\\|").replace("`", "\\`").replace("*", "\\*")


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return a table in a list of its own; no table where there are no rows."""
    lines = [columns, ("---",) * len(columns), *(map(cell, row) for row in rows)]
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines)] if rows else []


def junit(text: str) -> str:
    """Return how many tests passed, and a row for each that did not, from pytest's JUnit file."""
    cases = list(ElementTree.fromstring(text).iter("testcase"))
    failed, skipped = (problems(cases, kind) for kind in (("failure", "error"), ("skipped",)))
    bad, left_out = len({case for case, _ in failed}), len({case for case, _ in skipped})
    parts = [f"{len(cases) - bad - left_out} passed, {bad} failed, {left_out} skipped"]
    for name, found in (("failed test", failed), ("skipped test", skipped)):
        parts += table((name, "why"), [(f"{case.get('classname')}.{case.get('name')}", why) for case, why in found])
    return "\n\n".join(parts)


def problems(cases: list[ElementTree.Element], kinds: tuple[str, ...]) -> list[tuple[ElementTree.Element, str]]:
    """Return the cases with a problem of these kinds, each with what was expected and what came; some have several."""
    return [(case, part.get("message") or part.text or "") for case in cases for part in case if part.tag in kinds]


def endpoint(text: str) -> str:
    """Return every test of an endpoint and the time that a call takes, from the tester's report."""
    report = json.loads(text)
    if "error" in report:
        return cell(report["error"])
    parts = [cell(f"{report['url']}: {report['passed']} passed, {report['failed']} failed")]
    tests = [("ok" if test["passed"] else "FAIL", test["name"], test["message"]) for test in report["tests"]]
    parts += table(("", "test", "what came"), tests)
    if ms := report.get("timing_ms"):
        times = {"the first": ms["first"], "median": ms["median"], "worst": ms["worst"]}
        times["the server's share of the median"] = f"{ms['server_median']} ({ms['server_median'] / ms['median']:.0%})"
        parts += table(
            ("a call, as Banana's client makes it", "ms"), [(name, str(time)) for name, time in times.items()]
        )
    return "\n\n".join(parts)


def log(text: str) -> str:
    """Return the last lines of what a command said."""
    lines = html.escape("\n".join(text.splitlines()[-LOG_LINES:]), quote=False)
    return f"<pre>\n{lines}\n</pre>"


KINDS = {".xml": junit, ".json": endpoint, ".log": log}


def main(folder: str) -> None:
    """Print a section for every report in the folder."""
    reports = [path for path in sorted(Path(folder).glob("*")) if path.suffix in KINDS]
    if not reports:
        print("There is no report: it failed before any test. The log of the step that failed says why.")
    for path in reports:
        print(f"### {path.stem}\n\n{KINDS[path.suffix](path.read_text(encoding='utf-8', errors='replace'))}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
