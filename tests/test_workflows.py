"""What the workflows' checkers cannot see: when they run, who may write, and what their steps contain.

test_workflow_steps.py runs the steps.
"""

import re

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
def test_runs_for_pull_requests_to_main_and_pushes_to_it():
    assert PRE["on"]["pull_request"]["branches"] == ["main"]
    types = {"opened", "synchronize", "reopened", "ready_for_review", "unlabeled"}
    assert set(PRE["on"]["pull_request"]["types"]) == types
    assert PRE["on"]["push"] == {"branches": ["main"]}


def test_only_removing_no_auto_merge_starts_the_jobs():
    """Removing another label skips every job, in a separate group, so that no other run is canceled."""
    condition = "github.event.action != 'unlabeled' || github.event.label.name == 'no-auto-merge'"
    assert PRE["jobs"]["current"]["if"] == condition
    for name in set(PRE["jobs"]) - {"current"}:
        assert "current" in PRE["jobs"][name]["needs"]
    common, *other_label = PRE["concurrency"]["group"].split("${{")[1:]
    assert common.strip() == "github.workflow }}-" and other_label[0].strip() == "github.ref }}"
    opposite = "github.event.action == 'unlabeled' && github.event.label.name != 'no-auto-merge'"
    assert other_label[1].split() == f"{opposite} && format('-{{0}}', github.run_id) || '' }}}}".split()


def test_the_endpoint_is_tested_on_schedule_if_it_is_set():
    assert set(POST["on"]) == {"schedule", "workflow_dispatch"}
    assert POST["jobs"]["test"]["if"] == "vars.BANANA_MODEL_URL != ''"


def test_every_result_but_a_skipped_test_is_reported():
    # Without `!cancelled()`, GitHub skips the job when the test has failed.
    assert POST["jobs"]["report"]["if"] == "${{ !cancelled() && needs.test.result != 'skipped' }}"
    results = [step["if"] for step in POST["jobs"]["report"]["steps"]]
    assert results == ["needs.test.result != 'success'", "needs.test.result == 'success'"]


def test_nothing_is_merged_before_every_other_job_has_passed():
    assert set(PRE["jobs"]["merge"]["needs"]) == set(PRE["jobs"]) - {"merge"}


def test_only_finished_pull_requests_of_users_may_merge():
    assert set(PRE["jobs"]["merge"]["if"].split(" && ")) == {
        "github.event_name == 'pull_request'",
        "github.event.pull_request.head.repo.full_name == github.repository",
        "github.event.pull_request.user.type == 'User'",
        "github.event.sender.type == 'User'",
        "!github.event.pull_request.draft",
        "!contains(github.event.pull_request.labels.*.name, 'no-auto-merge')",
    }


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_fork_gets_no_permissions_of_this_repository(name):
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(WORKFLOWS[name]["on"])
    assert WORKFLOWS[name]["permissions"] == {}


def test_only_the_jobs_that_merge_and_report_may_write():
    writing = {name for name, job in JOBS.items() if "write" in job["permissions"].values()}
    assert writing == {"pre-deployment: merge", "post-deployment: report"}
    for name in writing:
        assert all("run" in step for step in JOBS[name]["steps"])  # nothing of the repository is checked out


def test_packages_are_installed_before_the_step_with_the_key():
    *others, with_key = POST["jobs"]["test"]["steps"]
    assert "secrets." in str(with_key)
    assert "secrets." not in str(others)
    assert "install" not in with_key["run"]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_a_timeout_and_persists_no_credentials(name):
    assert JOBS[name]["timeout-minutes"] <= 60
    for step in JOBS[name]["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("job", ["pre-deployment: image", "post-deployment: test"])
def test_an_endpoint_that_never_finishes_fails_its_step(job):
    """If the job itself ran out of time, its result would be canceled, not failed."""
    [step] = [step for step in JOBS[job]["steps"] if step.get("name") == "Call the deployed model"]
    assert step["timeout-minutes"] < JOBS[job]["timeout-minutes"]


def test_every_action_is_one_full_commit_with_its_version():
    lines = [line for path in FILES.values() for line in path.read_text().splitlines() if "uses:" in line]
    pins = {re.fullmatch(r"\s*(?:- )?uses: (\S+)@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in lines}
    assert None not in pins
    assert len({line.partition("uses: ")[2] for line in lines}) == len({pin[1] for pin in pins})


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b(?:vars|secrets)\.(\w+)", str(WORKFLOWS)))))
def test_every_variable_and_secret_is_in_ci_md(name):
    assert re.search(rf"^\| `{name}` \| (variable|secret)", (ROOT / "docs/CONTRIBUTING.md").read_text(), re.MULTILINE)


def test_dependabot_watches_every_list_and_the_base_image():
    updates = YAML(typ="safe").load(ROOT / ".github" / "dependabot.yml")["updates"]
    by_kind = {update["package-ecosystem"]: update for update in updates}
    lists = {path.relative_to(ROOT) for path in ROOT.rglob("*.txt")}
    lists = {path for path in lists if "requirements" in str(path) and ".venv" not in str(path)}
    named = {f"/{path.parent}".removesuffix(".") for path in lists}
    assert set(by_kind["pip"]["directories"]) == named
    assert {"github-actions", "docker"} <= set(by_kind)


# -- what their steps contain ------------------------------------------------------------------------------------------
ASSIGNMENT = {
    "Run the ONNX converter": "python convert_to_onnx.py --model ",
    "Test the ONNX model": "python test_onnx.py ",
    "Build the Docker image": "docker build ",
    "Call the deployed model": "python test_server.py --run-tests ",
}


def test_the_assignments_steps_are_in_order():
    steps = [step for step in PRE["jobs"]["image"]["steps"] if step.get("name") in ASSIGNMENT]
    assert [step["name"] for step in steps] == list(ASSIGNMENT)
    steps.append(STEPS["post-deployment: test", "Call the deployed model"])
    assert all(ASSIGNMENT[step["name"]] in step["run"] for step in steps)


def test_each_image_that_is_built_is_started():
    steps = [step.get("run", "") for step in PRE["jobs"]["image"]["steps"]]
    [build], [start] = ([step for step in steps if command in step] for command in ("docker build", "docker run"))
    assert "--build-arg TARGET" in build
    assert re.search(r"--tag (\S+)", build)[1] == re.search(r"--publish \S+ (\S+)$", start, re.MULTILINE)[1]


def test_nothing_hides_a_failure():
    for where, text in SHELL.items():
        assert not re.search(r"continue-on-error|set \+e|\|\| *(true\b|:|echo (?!.* > ))", text), where
    for workflow in WORKFLOWS.values():
        assert workflow["defaults"]["run"]["shell"] == "bash"  # with `pipefail`
    assert not [step for step in STEPS.values() if "shell" in step]


def test_no_github_expression_is_inside_a_script():
    assert not [step for step in STEPS.values() if "${{" in step["run"]]
