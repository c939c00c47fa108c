"""The Makefile's rules, with stand-ins for Python and pip."""

import os
import platform
import shutil
import subprocess

import pytest

from tests.server_process import ROOT, wait_until

# Stands in for `python3` and, in the environment that it creates, for `python` and `pip`. It logs its calls.
TOOL = """#!/bin/sh
echo "$(basename "$0") $*" >> calls
case "$*" in
-m\\ venv*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/pip" ;;
convert_to_onnx.py*) echo "$3" | sed s/auto/efficientnet-lite0/ > "$5" ;;
*model_name*) cat classifier.onnx ;;
*urlopen*) test -e index-answers ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile and the files that its rules depend on."""
    for name in ("Makefile", "convert_to_onnx.py", "model.py", "pytorch_model.py", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python3").write_text(TOOL)
    (tmp_path / "python3").chmod(0o755)
    return tmp_path


def make(clone, *arguments):
    """Run make; return its exit code, and the calls of Python and pip."""
    (clone / "calls").write_text("")
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MODEL"}
    command = ["make", "--no-print-directory", "PYTHON=./python3", *arguments]
    result = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    return result.returncode, (clone / "calls").read_text().splitlines()


def conversions(clone, *arguments):
    """Return which models are converted, and have what is written next be newer than the file."""
    returncode, calls = make(clone, "classifier.onnx", *arguments)
    assert returncode == 0
    written, now = clone / "classifier.onnx", clone / "now"
    # The clock of a file system ticks every few milliseconds, and make may take less.
    wait_until(lambda: now.touch() or now.stat().st_mtime_ns > written.stat().st_mtime_ns, "the clock ticks")
    return [call.split()[3] for call in calls if " convert_to_onnx.py " in call]


def test_the_same_model_is_not_converted_twice(clone):
    assert conversions(clone, "MODEL=efficientnet-lite0") == ["efficientnet-lite0"]
    assert conversions(clone) == []
    assert conversions(clone, "MODEL=efficientnet-lite0") == []
    assert conversions(clone, "MODEL=resnet18") == ["resnet18"]
    assert conversions(clone) == []
    (clone / "pytorch_model_weights.pth").touch()
    assert conversions(clone) == ["auto"]  # which is efficientnet-lite0 here
    assert conversions(clone, "MODEL=efficientnet-lite0") == []


@pytest.mark.parametrize(
    ("answers", "arguments", "is_used"),
    [(True, [], platform.system() == "Linux"), (False, [], False), (True, ["TORCH_INDEX="], False)],
    ids=["reachable", "unreachable", "turned off"],
)
def test_pytorch_for_cpus_is_installed_on_linux(clone, answers, arguments, is_used):
    if answers:
        (clone / "index-answers").touch()
    returncode, calls = make(clone, ".venv/installed", *arguments)
    assert returncode == 0
    [install] = [call for call in calls if call.startswith("pip install ")]
    assert ("--extra-index-url https://download.pytorch.org/whl/cpu " in install) == is_used
    assert ("--extra-index-url" in install) == is_used
