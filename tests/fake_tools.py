"""Stand-ins for docker, kubectl, pip and make, which check their arguments: for the commands of the documentation."""

import argparse
import os
import re
import sys
from dataclasses import fields
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runtime.settings import ModelSettings, ServerSettings  # noqa: E402


def docker(arguments: list[str]) -> None:
    """Check that the Dockerfile has the stage and the arguments of a build, and the server the settings of a run."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    parser = argparse.ArgumentParser("docker", allow_abbrev=False)
    command = parser.add_subparsers(required=True, dest="command")
    build = command.add_parser("build")
    build.add_argument("--target", choices=re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    build.add_argument("--build-arg", action="append", default=[])
    build.add_argument("--tag", required=True)
    build.add_argument("folder", choices=["."])
    run = command.add_parser("run")
    run.add_argument("--rm", action="store_true")
    run.add_argument("--gpus", choices=["all"])
    for option in ("--publish", "--env"):
        run.add_argument(option, action="append", default=[])
    for option in ("--memory", "--cpus"):
        run.add_argument(option)
    run.add_argument("image", choices=["classifier:cpu", "classifier:gpu"])
    options = parser.parse_args(arguments)
    if options.command == "build":
        given, known = options.build_arg, re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE)
    else:
        given, known = options.env, [field.name for group in (ServerSettings, ModelSettings) for field in fields(group)]
    if unknown := {assignment.partition("=")[0] for assignment in given} - set(known):
        sys.exit(f"docker {options.command}: unknown: {unknown}")


def kubectl(arguments: list[str]) -> None:
    """Check that a manifest is deploy/knative.yaml with an image, or that a secret is the one that it needs."""
    manifest = YAML(typ="safe").load(ROOT / "deploy" / "knative.yaml")
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    if arguments == ["apply", "-f", "-"]:
        applied = YAML(typ="safe").load(sys.stdin)
        image = applied["spec"]["template"]["spec"]["containers"][0].pop("image")
        is_right = container.pop("image") != image and applied == manifest
    else:
        [secret] = [entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "valueFrom" in entry]
        expected = ["create", "secret", "generic", secret["name"], f"--from-literal={secret['key']}="]
        is_right = [re.sub(r"(?<==)[^=]*$", "", argument) for argument in arguments] == expected
    if not is_right:
        sys.exit(f"kubectl: unexpected: {arguments}")


def pip(arguments: list[str]) -> None:
    """Check that a file of requirements is there, or that a package is one that the tests have."""
    match arguments:
        case ["install", "-r", file] if Path(file).is_file():
            pass
        case ["install", package] if f"{package}==" in (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8"):
            pass
        case _:
            sys.exit(f"pip: unexpected: {arguments}")


def make(arguments: list[str]) -> None:
    """Run `make run` and `make serve` in a clone that is set up already; of any other target, what it would run."""
    os.environ["PATH"] = os.environ["PATH"].partition(os.pathsep)[2]  # without this one
    dry = [] if arguments[0] == "run" or arguments == ["serve"] else ["--dry-run"]
    os.execvp("make", ["make", "-o", ".venv/installed", "-o", "classifier.onnx", *dry, *arguments])


TOOLS = {function.__name__: function for function in (docker, kubectl, pip, make)}


def install(folder: Path) -> None:
    """Write an executable for each tool into the folder, which must be the first in PATH."""
    folder.mkdir()
    for name in TOOLS:
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        (folder / name).chmod(0o755)


if __name__ == "__main__":
    TOOLS[sys.argv[1]](sys.argv[2:])
