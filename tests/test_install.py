"""The README's section "Without make", and what the Makefile passes to Docker and the server.

The section is followed in the environment of these tests or, with NEW_ENVIRONMENT set as in the pipeline, in a new one.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
import requests

from client.endpoint import free_port
from tests.server_process import ROOT, wait_until

NEW = bool(os.environ.get("NEW_ENVIRONMENT"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETUP, ASK = re.findall(r"^```sh\n(.*?)^```$", README.partition("## Without make\n")[2], re.M | re.S)[:2]
INSTALLING = ("export", "python3 -m venv", "pip install")
THERE = () if NEW else (*INSTALLING, "python convert_to_onnx.py")  # in the environment of these tests


@pytest.mark.parametrize(
    ("variables", "build", "run"),
    [
        (["BUILD_FLAGS=--network=host"], {"--network=host"}, set()),
        (["RUN_FLAGS=--env=THREADS=1"], set(), {"--env=THREADS=1"}),
        (["TARGET=gpu"], set(), {"--gpus=all"}),
        (["TARGET=gpu", "GPUS="], set(), set()),
    ],
    ids=" ".join,
)
def test_each_flag_is_passed_to_the_right_docker_command(variables, build, run):
    command = ["make", "--dry-run", "docker-run", *variables]
    printed = subprocess.check_output(command, cwd=ROOT, text=True).replace("\\\n", " ").splitlines()
    flags = {"--network=host", "--env=THREADS=1", "--gpus=all"}
    assert [flags & set(line.split()) for line in printed if line.startswith("docker ")] == [build, run]


@pytest.mark.parametrize(("variables", "host"), [([], "127.0.0.1"), (["HOST=0.0.0.0"], "0.0.0.0")])
def test_make_serve_listens_on_localhost(variables, host):
    command = ["make", "--dry-run", "--assume-old=.venv/installed", "--assume-old=classifier.onnx", "serve", *variables]
    # Under `make test`, make would print which folder it enters and leaves.
    environment = {name: value for name, value in os.environ.items() if name != "HOST" and "MAKE" not in name}
    printed = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
    assert printed.splitlines()[-1].startswith(f"HOST={host} exec ")


@pytest.fixture
def clone(tmp_path):
    """A new clone. It has the environment of these tests, unless NEW_ENVIRONMENT is set."""
    clone = tmp_path / "clone"
    made = shutil.ignore_patterns(".git", ".venv*", ".make", "*cache*", ".hypothesis", "*.onnx", "*.pth", "photos")
    shutil.copytree(ROOT, clone, ignore=made)
    if not NEW:
        (clone / ".venv").symlink_to(sys.prefix)
        (clone / "classifier.onnx").symlink_to(ROOT / "classifier.onnx")
    return clone


def environment(**more):
    """Return the environment variables without any that are set for this repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("BANANA_", "MODEL"))} | more


def follow(commands, folder):
    """Run the commands in a shell that stops at the first failure; return what they print."""
    command = ["bash", "-eo", "pipefail", "-c", "\n".join(commands)]
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def answers(process, port):
    """Return whether the server accepts connections; fail if it has exited."""
    assert process.poll() is None
    try:
        return bool(requests.get(f"http://127.0.0.1:{port}/_k/status"))
    except requests.ConnectionError:
        return False


def test_the_commands_without_make_work_in_any_folder(clone):
    *setup, serve = [line for line in SETUP.splitlines() if not line.startswith(THERE)]
    follow(setup, clone)
    port = free_port()
    ask = ASK.replace(":8000", f":{port}").splitlines()
    settings = environment(HOST="127.0.0.1", PORT=str(port))
    process = subprocess.Popen(["bash", "-c", f". .venv/bin/activate\nexec {serve}"], cwd=clone, env=settings)
    try:
        wait_until(lambda: answers(process, port), "the server listens")
        assert ": tench (class 0, probability 0." in follow(ask, clone)
        anywhere = [re.sub(r"(?<= )(?=\w+\.py|images/|\.venv)", f"{clone}/", line) for line in setup + ask]
        follow([line for line in anywhere if not line.startswith(INSTALLING)], "/")
        if NEW:
            create = ["python3 -m venv .venv-client", ".venv-client/bin/pip install -r requirements/client.txt"]
            follow([*create, ask[-1].replace("python", ".venv-client/bin/python")], clone)
            oracle = ".venv/bin/python -m pytest -rs tests/test_torchvision.py"
            # 5: every test is skipped, with its reason. In the pipeline, none may be skipped.
            print(follow([f'{oracle} || test "$?$GITHUB_ACTIONS" = 5'], clone))
    finally:
        process.terminate()
        process.wait()
