"""What the Makefile hands to Docker, and the README's way without make."""

import os
import subprocess

import pytest

from tests.server_process import ROOT


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
def test_each_flag_is_given_to_the_command_of_docker_that_knows_it(variables, build, run):
    command = ["make", "--dry-run", "docker-run", *variables]
    printed = subprocess.check_output(command, cwd=ROOT, text=True).replace("\\\n", " ").splitlines()
    flags = {"--network=host", "--env=THREADS=1", "--gpus=all"}
    assert [flags & set(line.split()) for line in printed if line.startswith("docker ")] == [build, run]


@pytest.mark.parametrize(("variables", "host"), [([], "127.0.0.1"), (["HOST=0.0.0.0"], "0.0.0.0")])
def test_without_a_container_the_server_listens_on_this_machine_alone(variables, host):
    command = ["make", "--dry-run", "--assume-old=.venv/installed", "--assume-old=classifier.onnx", "serve", *variables]
    environment = {name: value for name, value in os.environ.items() if name != "HOST"}
    printed = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
    assert printed.splitlines()[-1].startswith(f"HOST={host} exec ")
