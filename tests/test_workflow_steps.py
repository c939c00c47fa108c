"""The workflows' steps, run as GitHub runs them: failures, hostile responses, and branches that moved."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from ruamel.yaml import YAML

from client.labeled_images import presets
from tests.fake_endpoint import fake_endpoint
from tests.graphs import broken_copy, swap_channels
from tests.server_process import MODEL_PATH, ROOT

HOSTILE = "a\n```\n::error::b\r::error::c\n##[error]d\n</code></pre><b>"

GH = """
import json, pathlib, subprocess, sys
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
name = "-".join(sys.argv[1:3]).replace("/", "-")
answer = (folder / name).read_text() if (folder / name).exists() else "{}"
if "--jq" in sys.argv:
    command = ["jq", "--raw-output", sys.argv[sys.argv.index("--jq") + 1]]
    answer = subprocess.run(command, input=answer, stdout=subprocess.PIPE, text=True, check=True).stdout
print(answer, end="")
sys.exit((folder / "fail").exists() and name in (folder / "fail").read_text().split())
"""


def run(workflow, job, name, folder=ROOT, **environment):
    """Run the step with this name as GitHub does with `shell: bash`."""
    jobs = YAML(typ="safe").load(ROOT / ".github" / "workflows" / f"{workflow}-deployment.yml")["jobs"]
    [script] = [step["run"] for step in jobs[job]["steps"] if step.get("name") == name]
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path} | environment, capture_output=True, timeout=120
    )


def code(text):
    """Return what Markdown shows as code, which must be every line. A carriage return also ends a line."""
    lines = text.splitlines()
    assert all(line.startswith(b"    ") for line in lines)
    return b"\n".join(line[4:] for line in lines)


# -- reports ---------------------------------------------------------------------------------------------------------
def test_failed_checks_of_the_onnx_file_are_in_the_summary(tmp_path):
    onnx.save(broken_copy(onnx.load(MODEL_PATH), swap_channels), tmp_path / "broken.onnx")
    summary = tmp_path / "summary"
    files = {"MODEL_PATH": str(tmp_path / "broken.onnx"), "GITHUB_STEP_SUMMARY": str(summary)}
    result = run("pre", "image", "Test the ONNX model", **files)
    assert result.returncode == 1
    assert f"FAIL  {presets()[0].name}: expected 0 tench, got ".encode() in code(summary.read_bytes())
    assert result.stdout == summary.read_bytes()


def test_a_failed_conversion_is_in_the_summary(tmp_path):
    summary = tmp_path / "summary"
    result = run("pre", "image", "Run the ONNX converter", MODEL="unknown", GITHUB_STEP_SUMMARY=str(summary))
    assert result.returncode == 2
    assert b"unknown --model 'unknown'" in code(summary.read_bytes())


def test_the_last_lines_are_in_the_summary_and_all_in_the_log(tmp_path):
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_text("#!/bin/sh\nseq 1000\necho 'FAILED test_it.py - expected 1, got 2'\nexit 3\n")
    script.chmod(0o755)
    summary = tmp_path / "summary"
    name = "Check the style and run every test"
    result = run("pre", "tests", name, folder=tmp_path, GITHUB_STEP_SUMMARY=str(summary))
    assert result.returncode == 3
    assert code(summary.read_bytes()).endswith(b"\n999\n1000\nFAILED test_it.py - expected 1, got 2")
    assert b"\n123\n" not in summary.read_bytes()
    assert b"\n123\n" in result.stderr


def test_each_failed_test_is_one_line_at_the_end(tmp_path):
    """With CI set, pytest would otherwise print whole messages there, and the summary would lose names."""
    (tmp_path / "test_it.py").write_text("def test_it(): assert list(range(99)) == []\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [sys.executable, "-m", "pytest", "test_it.py"]
    result = subprocess.run(command, env=os.environ | {"CI": "true"}, cwd=tmp_path, capture_output=True, text=True)
    header, failed, count = result.stdout.splitlines()[-3:]
    assert "short test summary" in header
    assert failed.startswith("FAILED test_it.py::test_it - ")
    assert "1 failed" in count


def test_without_a_container_showing_its_log_is_no_failure(tmp_path):
    (tmp_path / "docker").write_text('#!/bin/sh\ntest "$1" = ps\n')  # lists no container
    (tmp_path / "docker").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    result = run("pre", "image", "Show the log of the container", PATH=path)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.mark.parametrize("status", [401, 500])
def test_an_endpoints_text_is_neither_markdown_nor_a_command(tmp_path, status):
    summary = tmp_path / "summary"
    health = {"state": "healthy", HOSTILE: HOSTILE}
    with fake_endpoint(status, {"error": {"message": HOSTILE}}, health=health) as (url, _):
        given = {"BANANA_MODEL_URL": url, "BANANA_API_KEY": "key", "GITHUB_STEP_SUMMARY": str(summary)}
        result = run("post", "test", "Call the deployed model", **given)
    assert result.returncode == {401: 1, 500: 3}[status]
    assert rb"\n::error::b" in code(summary.read_bytes())  # the tester escapes line breaks
    stop, said = result.stdout.split(b"\n", 1)
    assert said == summary.read_bytes()
    assert stop.startswith(b"::stop-commands::") and len(stop) > 40
    assert stop.removeprefix(b"::stop-commands::") not in said


# -- GitHub, with a stand-in for its command ---------------------------------------------------------------------------
@pytest.fixture
def github(tmp_path):
    """A folder with a stand-in for `gh`: the file `pr-view` holds what `gh pr view` prints; `calls` lists all calls."""
    if not shutil.which("jq"):
        pytest.skip("jq is not installed: it stands in for that of GitHub's command")
    (tmp_path / "gh.py").write_text(GH)
    # The interpreter cannot be in the first line: its path may contain a space or be too long.
    (tmp_path / "gh").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/gh.py" "$@"\n')
    (tmp_path / "gh").chmod(0o755)
    return tmp_path


def ask(github, workflow, job, name, **environment):
    """Run a step with the stand-in; return its exit code, its output and its calls of `gh`."""
    path = f"{github}{os.pathsep}{os.environ['PATH']}"
    result = run(workflow, job, name, folder=github, GH_REPO="owner/name", PATH=path, **environment)
    calls = (github / "calls").read_text().splitlines()
    return result.returncode, result.stdout.decode(), [json.loads(call) for call in calls]


MAIN, HEAD, TESTED, OTHER = ("1" * 40, "2" * 40, "3" * 40, "4" * 40)
MERGE = ("pre", "merge", "Merge the commit that was tested")
COMPARE = ("pre", "current", "Compare the tested commit with main")


def merge(github, step=MERGE, main=MAIN, parents=(MAIN, HEAD), author="write", sender="admin", **fields):
    """Run the step of the job `merge`, or `step`, with these responses from GitHub."""
    pull = {"state": "OPEN", "isDraft": False, "labels": [{"name": "documentation"}], "baseRefName": "main"} | fields
    (github / "pr-view").write_text(json.dumps(pull))
    for user, permission in {"author": author, "sender": sender}.items():
        name = f"api-repos-owner-name-collaborators-{user}-permission"
        (github / name).write_text(json.dumps({"permission": permission}))
    tested = {"parents": [{"sha": sha} for sha in parents]}
    (github / f"api-repos-owner-name-commits-{TESTED}").write_text(json.dumps(tested))
    (github / "api-repos-owner-name-git-ref-heads-main").write_text(json.dumps({"object": {"sha": main}}))
    return ask(github, *step, GITHUB_SHA=TESTED, HEAD=HEAD, NUMBER="7", AUTHOR="author", SENDER="sender")


def test_the_tested_commit_is_merged_and_main_is_tested_next(github):
    returncode, _, [*_, merging, testing] = merge(github)
    assert returncode == 0
    assert merging == ["pr", "merge", "7", "--merge", "--match-head-commit", HEAD]  # without deleting the branch
    assert testing == ["workflow", "run", "pre-deployment.yml", "--ref", "main"]
    assert "workflow_dispatch:" in (ROOT / ".github" / "workflows" / testing[2]).read_text()


@pytest.mark.parametrize(
    "fields",
    [
        {"isDraft": True},
        {"state": "MERGED"},
        {"labels": [{"name": "a"}, {"name": "no-auto-merge"}]},
        {"baseRefName": "production"},
    ],
)
def test_a_pull_request_held_back_meanwhile_is_not_merged(github, fields):
    returncode, output, [call] = merge(github, **fields)
    assert returncode == 0
    assert "::notice title=Not merged::" in output
    assert call[:2] == ["pr", "view"]


@pytest.mark.parametrize("user", ["author", "sender"])
@pytest.mark.parametrize("permission", ["read", "none"])
def test_a_user_without_write_permission_merges_nothing(github, user, permission):
    returncode, output, asked = merge(github, **{user: permission})
    assert returncode == 0
    assert f"::notice title=Not merged::{user} may not write" in output
    assert ["pr", "merge"] not in [call[:2] for call in asked]


@pytest.mark.parametrize("step", [COMPARE, MERGE], ids=lambda step: step[1])
@pytest.mark.parametrize("moved", [{"main": OTHER}, {"parents": (MAIN, OTHER)}, {"parents": (OTHER, HEAD)}])
def test_an_outdated_pull_request_fails(github, step, moved):
    returncode, output, asked = merge(github, step, **moved)
    assert returncode == 1
    assert "update the branch" in output
    assert ["pr", "merge"] not in [call[:2] for call in asked]


def test_a_current_pull_request_is_tested(github):
    assert merge(github, COMPARE)[0] == 0


@pytest.mark.parametrize(
    ("step", "failing"),
    [
        (MERGE, "pr-view"),
        (MERGE, "api-repos-owner-name-collaborators-sender-permission"),
        (MERGE, f"api-repos-owner-name-commits-{TESTED}"),
        (MERGE, "api-repos-owner-name-git-ref-heads-main"),
        (MERGE, "pr-merge"),
        (COMPARE, f"api-repos-owner-name-commits-{TESTED}"),
        (COMPARE, "api-repos-owner-name-git-ref-heads-main"),
    ],
)
def test_a_failure_of_github_ends_the_step(github, step, failing):
    (github / "fail").write_text(failing)
    returncode, _, asked = merge(github, step)
    assert returncode == 1
    assert "-".join(asked[-1][:2]).replace("/", "-") == failing  # no call after it


def report(github, name, open_issues):
    (github / "issue-list").write_text(json.dumps([{"number": number} for number in open_issues]))
    returncode, _, asked = ask(github, "post", "report", name, RUN="https://example.com/run")
    assert returncode == 0
    return [call for call in asked if call[:2] != ["issue", "list"]]


def test_a_failure_opens_an_issue_that_names_the_run(github):
    label, issue = report(github, "Open an issue, or comment on the open one", [])
    assert label[:2] == ["label", "create"]
    assert issue[:2] == ["issue", "create"]
    assert issue[issue.index("--label") + 1] == label[2]
    assert "https://example.com/run" in issue[-1]


def test_another_failure_comments_on_the_open_issue(github):
    [comment] = report(github, "Open an issue, or comment on the open one", [5])
    assert comment[:3] == ["issue", "comment", "5"]
    assert "https://example.com/run" in comment[-1]


def test_recovery_closes_the_issue(github):
    [close] = report(github, "Close the issue", [5])
    assert close[:3] == ["issue", "close", "5"]


def test_without_an_issue_there_is_none_to_close(github):
    assert report(github, "Close the issue", []) == []


@pytest.mark.parametrize("name", ["Open an issue, or comment on the open one", "Close the issue"])
def test_a_failure_of_github_ends_the_report(github, name):
    (github / "fail").write_text("issue-list")
    returncode, _, asked = ask(github, "post", "report", name, RUN="https://example.com/run")
    assert (returncode, len(asked)) == (1, 1)
