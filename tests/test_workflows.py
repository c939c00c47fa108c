"""The workflows, where their checkers cannot look: when they run, who may write, and what stands in them.

What their steps do is in test_workflow_steps.py.
"""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

from tests.server_process import ROOT

FILES = {path.stem: path for path in (ROOT / ".github" / "workflows").iterdir()}
WORKFLOWS = {name: YAML(typ="safe").load(path) for name, path in FILES.items()}
PRE, POST = WORKFLOWS["pre-deployment"], WORKFLOWS["post-deployment"]
JOBS = {f"{name}: {job}": parts for name, workflow in WORKFLOWS.items() for job, parts in workflow["jobs"].items()}
STEPS = {(name, step["name"]): step for name, job in JOBS.items() for step in job["steps"] if "run" in step}
SHELL = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").replace("\\\n", " ")
    for path in [ROOT / "Dockerfile", ROOT / "Makefile", ROOT / ".ci" / "run", *FILES.values()]
}


# -- when they run, and who may write ----------------------------------------------------------------------------------
def test_pull_requests_to_main_and_pushes_to_it_are_tested():
    assert PRE["on"]["pull_request"]["branches"] == ["main"]
    assert {"opened", "synchronize", "reopened", "ready_for_review"} <= set(PRE["on"]["pull_request"]["types"])
    assert PRE["on"]["push"] == {"branches": ["main"]}


def test_the_endpoint_is_tested_once_a_day_and_by_hand_if_there_is_one():
    assert set(POST["on"]) == {"schedule", "workflow_dispatch"}
    [schedule] = POST["on"]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", schedule["cron"])
    assert POST["jobs"]["watch"]["if"] == "vars.BANANA_MODEL_URL != ''"
    assert "needs.watch.result != 'skipped'" in POST["jobs"]["tell"]["if"]
    results = [step["if"] for step in POST["jobs"]["tell"]["steps"]]
    assert results == ["needs.watch.result == 'failure'", "needs.watch.result == 'success'"]


def test_the_tests_run_on_the_oldest_python_and_a_newer_one():
    assert PRE["jobs"]["tests"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]


def test_nothing_is_merged_before_every_other_job_has_passed():
    assert set(PRE["jobs"]["merge"]["needs"]) == set(PRE["jobs"]) - {"merge"}


def may_merge(event="pull_request", head="owner/name", draft=False, labels=(), author="User", sender="User"):
    """Evaluate the condition of the merge job as GitHub does: `a.*.name` is the name of every a."""
    condition = PRE["jobs"]["merge"]["if"].replace("github.event.pull_request.labels.*.name", "labels")
    for theirs, ours in (("&&", " and "), ("||", " or "), ("!contains", "not contains"), ("!git", "not git")):
        condition = condition.replace(theirs, ours)
    repository = SimpleNamespace(full_name=head)
    pull = SimpleNamespace(head=SimpleNamespace(repo=repository), draft=draft, user=SimpleNamespace(type=author))
    payload = SimpleNamespace(pull_request=pull, sender=SimpleNamespace(type=sender))
    github = SimpleNamespace(event_name=event, repository="owner/name", event=payload)
    return eval(condition, {"github": github, "labels": labels, "contains": lambda all, one: one in all})


def test_only_a_persons_finished_pull_request_from_this_repository_may_merge():
    assert may_merge()
    assert may_merge(labels=["documentation"])
    assert not may_merge(head="stranger/name")
    assert not may_merge(author="Bot")
    assert not may_merge(sender="Bot")
    assert not may_merge(draft=True)
    assert not may_merge(labels=["no-auto-merge"])
    assert not may_merge(event="push")
    assert not may_merge(event="workflow_dispatch")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_a_stranger_opens_runs_without_this_repositorys_rights(name):
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(WORKFLOWS[name]["on"])
    assert WORKFLOWS[name]["permissions"] == {}


def test_only_the_jobs_that_merge_and_tell_may_write_and_they_use_nothing_of_the_repository():
    writing = {name for name, job in JOBS.items() if "write" in job["permissions"].values()}
    assert writing == {"pre-deployment: merge", "post-deployment: tell"}
    for name in writing:
        assert all("run" in step for step in JOBS[name]["steps"])


def test_packages_are_installed_before_the_step_that_has_the_key():
    *others, with_key = POST["jobs"]["watch"]["steps"]
    assert "secrets." in str(with_key)
    assert "secrets." not in str(others)
    assert "install" not in with_key["run"]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_ends_within_the_hour_and_leaves_no_credentials_to_its_steps(name):
    assert JOBS[name]["timeout-minutes"] <= 60
    for step in JOBS[name]["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_every_action_is_one_full_commit_with_its_version():
    lines = [line for path in FILES.values() for line in path.read_text().splitlines() if "uses:" in line]
    pins = {re.fullmatch(r"\s*(?:- )?uses: (\S+)@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in lines}
    assert None not in pins
    assert len({line.partition("uses: ")[2] for line in lines}) == len({pin[1] for pin in pins})


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b(?:vars|secrets)\.(\w+)", str(WORKFLOWS)))))
def test_every_variable_and_secret_is_in_ci_md(name):
    assert re.search(rf"^\| `{name}` \| (variable|secret)", (ROOT / "docs/ci.md").read_text(), re.MULTILINE)


def test_dependabot_looks_after_every_folder_with_requirements_and_the_actions():
    updates = YAML(typ="safe").load(ROOT / ".github" / "dependabot.yml")["updates"]
    by_kind = {update["package-ecosystem"]: update for update in updates}
    lists = {path.relative_to(ROOT) for path in ROOT.rglob("*.txt")}
    lists = {path for path in lists if "requirements" in str(path) and ".venv" not in str(path)}
    named = {f"/{path.parent}".removesuffix(".") for path in lists}
    assert set(by_kind["pip"]["directories"]) == named
    assert {"github-actions", "docker"} <= set(by_kind)


# -- what their steps say ----------------------------------------------------------------------------------------------
ASSIGNMENT = {
    "Run the ONNX converter": "python convert_to_onnx.py --model ",
    "Test the ONNX model": "python test_onnx.py ",
    "Build the Docker image": "docker build ",
    "Call the deployed model": "python test_server.py --run-tests ",
}


def test_the_assignments_steps_are_there_by_name_in_order():
    steps = [step for step in PRE["jobs"]["image"]["steps"] if step.get("name") in ASSIGNMENT]
    assert [step["name"] for step in steps] == list(ASSIGNMENT)
    steps.append(STEPS["post-deployment: watch", "Call the deployed model"])
    assert all(ASSIGNMENT[step["name"]] in step["run"] for step in steps)


def test_each_image_that_is_built_is_started():
    steps = [step.get("run", "") for step in PRE["jobs"]["image"]["steps"]]
    [build], [start] = ([step for step in steps if command in step] for command in ("docker build", "docker run"))
    assert "--build-arg TARGET" in build
    assert re.search(r"--tag (\S+)", build)[1] == re.search(r"--publish \S+ (\S+)$", start, re.MULTILINE)[1]
    assert set(PRE["jobs"]["image"]["strategy"]["matrix"]["target"]) == {"cpu", "gpu"}


def test_nothing_hides_a_failure():
    for where, text in SHELL.items():
        assert not re.search(r"continue-on-error|set \+e|\|\| *(true\b|:|echo (?!.* > ))", text), where
    for workflow in WORKFLOWS.values():
        assert workflow["defaults"]["run"]["shell"] == "bash"  # with `pipefail`
    assert not [step for step in STEPS.values() if "shell" in step]


def test_no_value_of_githubs_is_put_into_the_text_of_a_script():
    assert not [step for step in STEPS.values() if "${{" in step["run"]]


def passed_flags():
    """Return the flags that anything here passes to a script, by the script's path."""
    flags = {}
    for text in SHELL.values():
        for script, arguments in re.findall(r"python3? (\S+\.py)((?: +[^|&>\s]+)+)", text):
            flags.setdefault(script, set()).update(re.findall(r" (--[a-z-]+)", arguments))
    return {script: found for script, found in flags.items() if found}


@pytest.mark.parametrize(("script", "flags"), passed_flags().items())
def test_every_flag_that_is_passed_to_a_script_is_one_of_its_own(script, flags):
    result = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True)
    assert flags <= set(re.findall(r"--[a-z-]+", result.stdout))
