"""The Dockerfile, .dockerignore and the lists of requirements."""

import os
import re
import subprocess
import tomllib

import pytest
from ruamel.yaml import YAML

from tests.imports import needed
from tests.server_process import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LISTS = [ROOT / "requirements.txt", *ROOT.glob("requirements/*.txt"), ROOT / "benchmarks/peers/requirements.txt"]
PINS = {path: path.read_text(encoding="utf-8").splitlines() for path in LISTS}


def stages():
    """Return the instructions of each stage by its name, in order, with continued lines joined."""
    _, *parts = re.split(r"^FROM ", DOCKERFILE.replace("\\\n", " "), flags=re.MULTILINE)
    return {part.splitlines()[0].split()[-1]: part for part in parts}


def copied(stage):
    """Return the files and folders that a stage copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.*) \S+$", stages()[stage], re.MULTILINE)
    return {name.rstrip("/").replace("[h]", "h") for line in lines for name in line.split()}


def allowed():
    """Return the paths that .dockerignore allows."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    everything, *names = [line for line in lines if line and not line.startswith("#") and line != "**/__pycache__"]
    assert everything == "*"
    assert all(name.startswith("!") for name in names)
    return {name.removeprefix("!") for name in names}


@pytest.mark.parametrize(
    ("stage", "scripts"), [("app", ["server.py"]), ("converter", ["convert_to_onnx.py", "test_onnx.py"])]
)
def test_a_stage_has_exactly_the_scripts_it_needs(stage, scripts):
    files, names = set().union(*map(needed, scripts)), copied(stage)
    assert {file for file in files if file not in names and file.partition("/")[0] not in names} == set()
    assert {name for name in names if name.endswith(".py")} <= files


@pytest.mark.parametrize("file", sorted(needed("server.py")))
def test_files_that_the_server_reads_are_in_the_image(file):
    beside = r'Path\(__file__\)(?:\.parent|\.with_name)[ /(]+"([^"]+)"'
    for name in re.findall(beside, (ROOT / file).read_text(encoding="utf-8")):
        assert {name, file.rpartition("/")[0]} & copied("app")


def test_dockerignore_allows_exactly_what_is_copied():
    names = set().union(*map(copied, stages()))
    folders = {name for name in names if (ROOT / name).is_dir()}
    assert {name for name in allowed() if name.partition("/")[0] not in folders} == names - folders
    assert {name.partition("/")[0] for name in allowed() if "/" in name} == folders


def test_the_dockerfile_needs_no_buildkit():
    """Some platforms that deploy from GitHub have a builder without mounts and heredocs."""
    assert not re.search(r"^# *syntax=|--mount|--link|--chmod|<<", DOCKERFILE, re.MULTILINE)


def test_target_names_the_last_stage_and_cpu_is_the_default():
    """Most platforms that deploy from GitHub pass build arguments, but cannot name a stage."""
    assert re.findall(r"^ARG TARGET=(.*)$", DOCKERFILE.partition("FROM ")[0], re.MULTILINE) == ["cpu"]
    assert DOCKERFILE.endswith("\nFROM ${TARGET}\n")
    for target in ("cpu", "gpu"):
        assert stages()[target].rstrip().splitlines()[-1] == "USER 65532:65532"


def test_the_base_image_is_named_once_for_dependabot():
    """Dependabot reads an image's name after FROM, not in an ARG."""
    named = re.findall(r"^FROM (\S*:\S+)", DOCKERFILE, re.MULTILINE)
    assert len(named) == 1


def test_a_failed_conversion_says_what_to_do(tmp_path):
    [command] = re.findall(r"^RUN (python convert_to_onnx.py .*)$", stages()["convert"], re.MULTILINE)
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(["sh", "-c", command], env={"PATH": path}, capture_output=True, text=True)
    assert result.returncode == 1
    assert "--build-arg MODEL=auto" in result.stderr
    assert "pytorch_model_weights.pth next to the Dockerfile" in result.stderr


def test_onnx_runtime_has_one_version_for_cpu_and_gpu():
    pins = {line for lines in PINS.values() for line in lines}
    [version] = [pin.removeprefix("onnxruntime==") for pin in pins if pin.startswith("onnxruntime==")]
    assert f"onnxruntime-gpu[cuda,cudnn]=={version}" in pins


@pytest.mark.parametrize("path", PINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_list_says_what_it_is_for_and_pins_versions(path):
    assert re.match(r"# (For|To|What) ", PINS[path][0])
    lines = [line for line in PINS[path] if not line.startswith("#")]
    assert lines
    for line in lines:
        file = re.fullmatch(r"-r (\S+)", line)
        named = (path.parent / file[1]).resolve() if file else None
        assert named in PINS if file else re.fullmatch(r"[a-z0-9.-]+(\[[a-z,]+\])?==[\w.]+(; .+)?", line), line


def test_a_package_has_one_version_in_all_lists():
    peers, others = set(PINS[LISTS[-1]]), [line for path in LISTS[:-1] for line in PINS[path] if "==" in line]
    names = [pin.partition("==")[0] for pin in others]
    assert len(set(names)) == len(names)
    assert {pin for pin in peers if pin.partition("==")[0] in names} <= set(others)


def test_platform_files_in_the_docs_match_the_image():
    page = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    fly, cerebrium = map(tomllib.loads, re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    [space] = re.findall(r"^```yaml\n---\n(.*?)^---\n```$", page, re.MULTILINE | re.DOTALL)
    service, runtime = fly["http_service"], cerebrium["cerebrium"]["runtime"]["custom"]
    ports = {service["internal_port"], runtime["port"], YAML(typ="safe").load(space)["app_port"]}
    assert ports == {int(re.search(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)[1])}
    paths = [runtime["healthcheck_endpoint"], runtime["readycheck_endpoint"], service["checks"][0]["path"]]
    assert set(paths) == {re.search(r"^HEALTHCHECK .*\n.*}(/\w+)", DOCKERFILE, re.MULTILINE)[1]}
    declared = set(re.findall(r"^ARG (\w+)=", DOCKERFILE, re.MULTILINE))
    assert set(fly["build"]["args"]) <= declared
