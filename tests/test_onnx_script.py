"""test_onnx.py as a command: it passes the right file, and fails each wrong one by the name of the case."""

import os
import subprocess
import sys

import onnx
import pytest

from tests.graphs import BROKEN, broken_copy, of_other_classes, swap_channels
from tests.server_process import MODEL_PATH, NEWT, ROOT, TENCH


def run_tester(model_path, *arguments):
    command = [sys.executable, "test_onnx.py", *arguments]
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


def test_a_wrong_file_fails_by_name_under_pytest_too(tmp_path):
    onnx.save(broken_copy(onnx.load(MODEL_PATH), swap_channels), tmp_path / "broken.onnx")
    environment = os.environ | {"MODEL_PATH": str(tmp_path / "broken.onnx")}
    command = [sys.executable, "-m", "pytest", "test_onnx.py", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"AssertionError: {FAILS['swap_channels'].removeprefix('FAIL  ')}" in result.stdout


def test_it_works_from_any_folder_and_under_pytest_each_check_is_a_test():
    clean = {name: value for name, value in os.environ.items() if name != "MODEL_PATH"}
    command = [sys.executable, ROOT / "test_onnx.py"]
    subprocess.run(command, cwd="/", env=clean, check=True, capture_output=True)
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", ROOT / "test_onnx.py"]
    result = subprocess.run(command, cwd="/", env=clean, check=True, capture_output=True, text=True)
    for name in ("images/n01440764_tench.jpeg", "images/n01632777_axolotl.jpeg", "probabilities", "resize"):
        assert f"test_onnx.py::test_onnx[{name}] PASSED" in result.stdout


def test_a_plugin_that_warns_fails_no_check(tmp_path):
    (tmp_path / "noisy.py").write_text("import warnings\ndef pytest_collection_modifyitems(): warnings.warn('noise')\n")
    environment = os.environ | {"MODEL_PATH": str(MODEL_PATH), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-p", "noisy", "-p", "no:cacheprovider", ROOT / "test_onnx.py"]
    result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert "UserWarning: noise" in result.stdout
    assert result.returncode == 0, result.stdout


def test_no_file_is_a_sentence_and_exit_code_1(tmp_path):
    result = run_tester(tmp_path / "nothing.onnx")
    assert result.returncode == 1
    assert "make it with `python convert_to_onnx.py`" in result.stderr
    assert "Traceback" not in result.stderr


def test_expect_names_the_images_of_any_other_model(other_model):
    path, tench, newt = other_model
    result = run_tester(path, "--expect", f"{TENCH}={tench}", "--expect", f"{NEWT}={newt}")
    assert result.returncode == 0, result.stdout
    assert f"ok    images/n01440764_tench.jpeg: {tench} kind 0, probability " in result.stdout
    assert "4 passed, 0 failed" in result.stdout


def test_another_class_than_expected_fails_with_both(tmp_path):
    path = of_other_classes(tmp_path / "other.onnx", [26, 0], "Sigmoid")
    result = run_tester(path, "--expect", f"{TENCH}=0", "--expect", f"{NEWT}=2")
    assert result.returncode == 1
    assert "FAIL  images/n01440764_tench.jpeg: expected 0, got 1 kind 0" in result.stdout
    assert "FAIL  images/n01632777_axolotl.jpeg: expected 2, but the model's 2 classes are 0 to 1" in result.stdout


def test_what_does_not_sum_to_1_after_a_softmax_fails(tmp_path):
    path = of_other_classes(tmp_path / "other.onnx", [0, 26, 7], "Sigmoid", described="softmax")
    result = run_tester(path, "--expect", f"{TENCH}=0")
    assert result.returncode == 1
    assert "FAIL  probabilities: expected a sum of 1 after softmax, got sums per image from " in result.stdout


def test_what_is_expected_of_no_image_fails_in_words(tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    result = run_tester(MODEL_PATH, "--expect", f"{tmp_path / 'notes.txt'}=0")
    assert result.returncode == 1
    assert f"FAIL  {tmp_path / 'notes.txt'}: " in result.stdout
    wrong = run_tester(MODEL_PATH, "--expect", f"{TENCH}=tench")
    assert wrong.returncode == 2
    assert "expected IMAGE=CLASS_ID" in wrong.stderr
