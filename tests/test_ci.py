"""The scripts of .ci and the merge job's: what they say of reports, when it merges, and what becomes of the issue."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from tests.misbehaving import misbehaving
from tests.server_process import ROOT

CI = ROOT / ".ci"

GH = f"""#!{sys.executable}
import json, pathlib, subprocess, sys
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
name = "-".join(sys.argv[1:3]).replace("/", "-")
answer = (folder / name).read_text() if (folder / name).exists() else "{{}}"
if "--jq" in sys.argv:
    command = ["jq", "--raw-output", sys.argv[sys.argv.index("--jq") + 1]]
    answer = subprocess.run(command, input=answer, stdout=subprocess.PIPE, text=True, check=True).stdout
print(answer, end="")
sys.exit((folder / "fail").exists() and name in (folder / "fail").read_text().split())
"""


def run(command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, **options)


def summary(folder):
    result = run([sys.executable, CI / "summary.py", folder])
    assert result.returncode == 0, result.stderr
    return result.stdout


# -- summary.py ----------------------------------------------------------------------------------------------------
def test_each_failed_case_is_listed_with_expected_and_got(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest, unittest\n"
        "def test_fine(): pass\n"
        "def test_wrong(): raise AssertionError('expected 0 tench, got 7 <b>cock</b> | a\\nb')\n"
        "@pytest.fixture\ndef broken(): raise OSError('no disk')\n"
        "def test_error(broken): pass\n"
        "@pytest.mark.skip(reason='no GPU here')\ndef test_skipped(): pass\n"
        "class TestSub(unittest.TestCase):\n"
        "    def test_each(self):\n"
        "        for name in 'ab':\n"
        "            with self.subTest(name):\n"
        "                self.fail(f'{name}: expected 1, got 2')\n"
    )
    report = tmp_path / "reports" / "tests.xml"
    assert run([sys.executable, "-m", "pytest", f"--junitxml={report}", "-c", os.devnull, tmp_path]).returncode == 1
    said = summary(report.parent)
    assert "### tests\n\n1 passed, 3 failed, 1 skipped\n" in said
    assert "test_it.test_wrong | AssertionError: expected 0 tench, got 7 &lt;b&gt;cock&lt;/b&gt; \\| a b |\n" in said
    assert "test_it.test_error | failed on setup with" in said
    assert "no disk" in said
    for name in "ab":
        assert f"test_it.TestSub.test_each | AssertionError: {name}: expected 1, got 2 |\n" in said
    assert "test_it.test_skipped | no GPU here |\n" in said
    assert "test_fine" not in said


def test_an_endpoints_report_has_every_test_and_the_time_of_a_call(served, tmp_path):
    command = [sys.executable, ROOT / "test_server.py", "--run-tests", "--json", "--url", served.url]
    (tmp_path / "endpoint.json").write_text(run(command).stdout)
    said = summary(tmp_path)
    assert f"{served.url}: 4 passed, 0 failed" in said or f"{served.url}: 6 passed, 0 failed" in said
    assert "| ok | images/n01632777_axolotl.jpeg | 26 common newt" in said
    ms = json.loads((tmp_path / "endpoint.json").read_text())["timing_ms"]
    for name in ("first", "median", "worst"):
        assert f" {name} | {ms[name]} |" in said
    assert (
        f"| the server's share of the median | {ms['server_median']} ({ms['server_median'] / ms['median']:.0%}) |"
        in said
    )


def test_an_endpoints_report_without_times_is_shown_without(tmp_path):
    test = {"name": "calls", "passed": False, "message": "refused with 401: send the API key"}
    report = {"url": "https://example.com", "tests": [test], "passed": 0, "failed": 1}
    (tmp_path / "endpoint.json").write_text(json.dumps(report))
    assert "| FAIL | calls | refused with 401: send the API key |" in summary(tmp_path)


def test_a_command_that_failed_is_quoted_and_nothing_at_all_is_said_to_be_so(tmp_path):
    (tmp_path / "model.log").write_text("convert_to_onnx.py: class 5, PyTorch says 0\n</pre><b>\n")
    assert "<pre>\nconvert_to_onnx.py: class 5, PyTorch says 0\n&lt;/pre&gt;&lt;b&gt;\n</pre>" in summary(tmp_path)
    assert "failed before any test" in summary(tmp_path / "nowhere")


# -- test-endpoint -------------------------------------------------------------------------------------------------
@pytest.fixture
def checkout(tmp_path):
    """Give a checkout with the tester's packages: reports are not to go to the real one."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "test-endpoint").symlink_to(CI / "test-endpoint")
    (tmp_path / "test_server.py").symlink_to(ROOT / "test_server.py")
    python = tmp_path / ".venv-tester" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "Makefile").write_text(".venv-tester/installed:\n")
    return tmp_path


def endpoint(checkout, url):
    environment = os.environ | {"BANANA_MODEL_URL": url}
    result = run([checkout / ".ci" / "test-endpoint"], env=environment)
    return result, {path.name: path.read_text() for path in (checkout / "reports").iterdir()}


def test_an_endpoint_that_passes_leaves_its_report(checkout, served):
    result, reports = endpoint(checkout, served.url)
    assert result.returncode == 0
    assert json.loads(reports.pop("endpoint.json"))["failed"] == 0
    assert reports == {}


def test_an_endpoint_that_does_not_answer_fails_and_leaves_its_words(checkout):
    with misbehaving(500, b"{}") as (url, _):
        result, reports = endpoint(checkout, url)
    assert result.returncode == 3
    assert "answers 500" in json.loads(reports.pop("endpoint.json"))["error"]
    assert "answers 500" in reports.pop("endpoint.log")
    assert reports == {}
    said = run([sys.executable, CI / "summary.py", checkout / "reports"])
    assert "answers 500" in said.stdout.partition("### endpoint")[2].partition("###")[0]


def test_without_an_endpoint_it_says_that_there_is_nothing_to_watch(checkout):
    result, reports = endpoint(checkout, "")
    assert result.returncode == 0
    assert "::warning title=Nothing to watch::" in result.stdout
    assert "nothing to watch" in summary(checkout / "reports")
    assert set(reports) == {"endpoint.log"}


# -- the merge job and tell.py, with a stand-in for GitHub's command --------------------------------------------------
@pytest.fixture
def github(tmp_path, monkeypatch):
    """Give a folder in which a file `pr-view` holds what `gh pr view` answers, and in `calls` is what was asked for."""
    command = tmp_path / "gh"
    command.write_text(GH)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def calls(github):
    return [json.loads(line) for line in (github / "calls").read_text().splitlines()]


MAIN, HEAD, TESTED, OTHER = ("1" * 40, "2" * 40, "3" * 40, "4" * 40)


def merge(github, main=MAIN, parents=(MAIN, HEAD), **fields):
    """Run the script of the merge job; return its result and its calls of GitHub's command."""
    if not shutil.which("jq"):
        pytest.skip("jq is not installed: it stands in for that of GitHub's command")
    [step] = YAML(typ="safe").load(ROOT / ".github/workflows/pre-deployment.yml")["jobs"]["merge"]["steps"]
    pull = {"state": "OPEN", "isDraft": False, "labels": [{"name": "documentation"}]} | fields
    (github / "pr-view").write_text(json.dumps(pull))
    tested = {"parents": [{"sha": sha} for sha in parents]}
    (github / f"api-repos-owner-name-commits-{TESTED}").write_text(json.dumps(tested))
    (github / "api-repos-owner-name-git-ref-heads-main").write_text(json.dumps({"object": {"sha": main}}))
    given = {"GH_REPO": "owner/name", "GITHUB_SHA": TESTED, "HEAD": HEAD, "NUMBER": "7"}
    result = run(["bash", "-eo", "pipefail", "-c", step["run"]], env=os.environ | given)
    return result, calls(github)


def test_what_was_tested_is_merged_and_main_is_tested_next(github):
    result, asked = merge(github)
    assert result.returncode == 0, result.stderr
    *_, merging, testing = asked
    assert merging == ["pr", "merge", "7", "--merge", "--match-head-commit", HEAD]  # and keeps the branch
    assert testing == ["workflow", "run", "pre-deployment.yml", "--ref", "main"]
    workflow = (ROOT / ".github" / "workflows" / testing[2]).read_text()
    assert "workflow_dispatch:" in workflow


@pytest.mark.parametrize(
    "fields", [{"isDraft": True}, {"state": "MERGED"}, {"labels": [{"name": "a"}, {"name": "no-auto-merge"}]}]
)
def test_what_is_held_back_since_the_tests_is_left_alone_and_the_reason_is_said(github, fields):
    result, asked = merge(github, **fields)
    assert result.returncode == 0
    assert "::notice title=Not merged::it is closed, a draft or labeled no-auto-merge by now" in result.stdout
    assert [call[:2] for call in asked] == [["pr", "view"]]


@pytest.mark.parametrize("moved", [{"main": OTHER}, {"parents": (MAIN, OTHER)}, {"parents": (OTHER, HEAD)}])
def test_what_has_moved_since_the_tests_is_not_merged(github, moved):
    result, asked = merge(github, **moved)
    assert result.returncode == 1
    assert "update the branch" in result.stdout
    assert ["pr", "merge"] not in [call[:2] for call in asked]


@pytest.mark.parametrize(
    "failing",
    ["pr-view", f"api-repos-owner-name-commits-{TESTED}", "api-repos-owner-name-git-ref-heads-main", "pr-merge"],
)
def test_a_failure_of_githubs_own_is_one_of_the_merge_job(github, failing):
    (github / "fail").write_text(failing)
    result, asked = merge(github)
    assert result.returncode == 1
    assert "-".join(asked[-1][:2]).replace("/", "-") == failing  # and nothing after it


def test_a_failure_of_githubs_own_is_one_of_tell(github):
    (github / "fail").write_text("issue-list")
    result = run([sys.executable, CI / "tell.py", "failure", "https://example.com"])
    assert result.returncode == 1
    assert len(calls(github)) == 1


def tell(github, result, open_issues):
    (github / "issue-list").write_text(json.dumps([{"number": number} for number in open_issues]))
    told = run([sys.executable, CI / "tell.py", result, "https://example.com/run"])
    assert told.returncode == 0, told.stderr
    return [call for call in calls(github) if call[:2] != ["issue", "list"]]


def test_a_failure_opens_an_issue_that_names_the_run(github):
    label, issue = tell(github, "failure", [])
    assert label[:2] == ["label", "create"]
    assert issue[:2] == ["issue", "create"]
    assert issue[issue.index("--label") + 1] == label[2]
    assert "https://example.com/run" in issue[-1]


def test_another_failure_adds_to_the_issue_that_is_open(github):
    [comment] = tell(github, "failure", [5])
    assert comment[:3] == ["issue", "comment", "5"]


def test_recovery_closes_the_issue(github):
    [close] = tell(github, "success", [5])
    assert close[:3] == ["issue", "close", "5"]


@pytest.mark.parametrize(("result", "issues"), [("success", []), ("cancelled", [5]), ("skipped", [])])
def test_otherwise_the_issue_is_left_as_it_is(github, result, issues):
    assert tell(github, result, issues) == []
