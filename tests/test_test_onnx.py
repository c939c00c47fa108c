"""test_onnx.py as a command: it passes the right file, and fails each wrong one by the name of the case."""

import os
import subprocess
import sys

import onnx
import pytest

from tests.broken import BROKEN, broken_copy
from tests.serving import ROOT

MODEL_PATH = ROOT / (os.environ.get("MODEL_PATH") or "classifier.onnx")


def run_tester(model_path):
    command = [sys.executable, "test_onnx.py"]
    environment = os.environ | {"MODEL_PATH": str(model_path)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_right_file_passes_every_check():
    result = run_tester(MODEL_PATH)
    assert result.returncode == 0, result.stdout
    assert "ok    images/n01440764_tench.jpeg: 0 tench" in result.stdout
    assert "ok    images/n01632777_axolotl.jpeg: 26 common newt" in result.stdout
    assert "4 passed, 0 failed" in result.stdout or "6 passed, 0 failed" in result.stdout  # with the photographs


# The fifth, swapped mean and standard deviation, is all but the same for a model where the two are 127 and 128 of 255:
# the converter's proof is what finds that.
FAILS = {
    "swap_channels": "FAIL  images/n01440764_tench.jpeg: expected 0 tench, got ",
    "drop_antialias": "FAIL  resize: images/n01440764_tench.jpeg: expected to be within ",
    "forget_normalization": "FAIL  images/n01632777_axolotl.jpeg: expected 26 common newt, got ",
    "forget_softmax": "does not give the probabilities of 1000 classes",
}


@pytest.mark.parametrize("break_it", [f for f in BROKEN if f.__name__ in FAILS], ids=lambda function: function.__name__)
def test_a_wrong_file_fails_by_name_with_expected_and_got(tmp_path, break_it):
    onnx.save(broken_copy(onnx.load(MODEL_PATH), break_it), tmp_path / "broken.onnx")
    result = run_tester(tmp_path / "broken.onnx")
    assert result.returncode == 1
    assert FAILS[break_it.__name__] in result.stdout + result.stderr
    environment = os.environ | {"MODEL_PATH": str(tmp_path / "broken.onnx")}
    pytest_command = [sys.executable, "-m", "pytest", "test_onnx.py", "-p", "no:cacheprovider"]
    assert subprocess.run(pytest_command, cwd=ROOT, env=environment, capture_output=True).returncode == 1


def test_no_file_is_a_sentence_and_exit_code_1(tmp_path):
    result = run_tester(tmp_path / "nothing.onnx")
    assert result.returncode == 1
    assert "make it with `python convert_to_onnx.py`" in result.stderr
    assert "Traceback" not in result.stderr
