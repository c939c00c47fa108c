"""test_onnx.py as a command: it passes the correct file, and fails each wrong one."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image

import test_onnx
from client.labeled_images import LabeledImage, presets
from conversion import ConversionError
from model import OnnxClassifier
from tests import networks
from tests.graphs import (
    broken_copy,
    drop_antialias,
    forget_normalization,
    forget_softmax,
    of_other_classes,
    swap_channels,
    swap_mean_and_std,
)
from tests.server_process import MODEL_PATH, NEWT, ROOT, TENCH


def run_tester(model_path, *arguments):
    command = [sys.executable, "test_onnx.py", *arguments]
    environment = os.environ | {"MODEL_PATH": str(model_path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    return result


def run_pytest(*options, **environment):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, ROOT / "test_onnx.py"]
    return subprocess.run(command, cwd="/", env=os.environ | environment, capture_output=True, text=True)


def test_correct_file_passes_every_check():
    result = run_tester(MODEL_PATH)
    assert result.returncode == 0, result.stdout
    for image in presets():
        assert f"ok    {image.name}: {image.class_id} {image.class_name}, probability 0." in result.stdout
    # Both resize alike, but halves are rounded differently.
    assert re.search(r"ok    preprocessing: pixels differ from Pillow's by at most [12]\.00 of 255", result.stdout)
    assert "4 passed, 0 failed" in result.stdout


def scale(name, factor):
    """Return an edit that multiplies a constant of the preprocessing."""

    def edit(graph):
        [entry] = [entry for entry in graph.initializer if entry.name == f"preprocessing/{name}"]
        scaled = numpy_helper.to_array(entry) * np.float32(factor)
        entry.CopyFrom(numpy_helper.from_array(scaled, entry.name))

    return edit


def rename_input(graph, old, new):
    """Let the nodes of the graph and its branches read another tensor."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            rename_input(attribute.g, old, new)


def halve_brightness(graph):
    rename_input(graph, "image", "darker")
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.uint8), "one"))
    graph.node.insert(0, helper.make_node("BitShift", ["image", "one"], ["darker"], direction="RIGHT"))


def halve_brightness_of_resized_pixels(graph):
    branches = next(node for node in graph.node if node.op_type == "If").attribute
    branch = next(branch.g for branch in branches if branch.name == "then_branch")
    [keep] = branch.node
    keep.CopyFrom(helper.make_node("BitShift", [*keep.input, "one"], keep.output, direction="RIGHT"))
    one = numpy_helper.from_array(np.array(1, np.uint8))
    branch.node.insert(0, helper.make_node("Constant", [], ["one"], value=one))


def take_other_weights(graph):
    random = np.random.default_rng(0)
    for entry in graph.initializer:
        values = numpy_helper.to_array(entry)
        if values.ndim > 1:
            entry.CopyFrom(numpy_helper.from_array(random.permuted(values), entry.name))


PREPROCESSING, TENCH_FAILS = "FAIL  preprocessing: ", f"FAIL  {presets()[0].name}: expected 0 tench, got "
WRONG = {
    "brightness halved": (halve_brightness, PREPROCESSING),
    "brightness halved at the model's size": (halve_brightness_of_resized_pixels, PREPROCESSING),
    "mean 10 % high": (scale("mean", 1.1), PREPROCESSING),
    "mean 10 % low": (scale("mean", 0.9), PREPROCESSING),
    "std 10 % high": (scale("std", 1.1), PREPROCESSING),
    "std 10 % low": (scale("std", 0.9), PREPROCESSING),
    "mean and std swapped": (swap_mean_and_std, PREPROCESSING),
    "divided by 255 twice": (scale("white", 255), PREPROCESSING),
    "not divided by 255": (scale("white", 1 / 255), PREPROCESSING),
    "not normalized": (forget_normalization, f"FAIL  {presets()[1].name}: expected 26 common newt, got "),
    "red and blue swapped": (swap_channels, TENCH_FAILS),
    "no antialias": (drop_antialias, PREPROCESSING),
    "logits": (forget_softmax, "probabilities of 1000 classes"),
    "other weights": (take_other_weights, TENCH_FAILS),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_file_fails(tmp_path, name):
    break_it, message = WRONG[name]
    onnx.save(broken_copy(onnx.load(MODEL_PATH), break_it), tmp_path / "broken.onnx")
    result = run_tester(tmp_path / "broken.onnx")
    assert result.returncode == 1
    assert message in result.stdout + result.stderr


def test_missing_antialias_fails_also_with_smooth_images(tmp_path, monkeypatch):
    Image.new("RGB", (500, 375), (200, 150, 100)).save(tmp_path / "smooth.png")
    monkeypatch.setattr(test_onnx, "presets", lambda: [LabeledImage(tmp_path / "smooth.png", 0)])
    path = str(tmp_path / "broken.onnx")
    monkeypatch.setattr(test_onnx, "MODEL_PATH", path)
    onnx.save(broken_copy(onnx.load(MODEL_PATH), drop_antialias), path)
    with pytest.raises(ConversionError, match=r"smooth\.png"):
        test_onnx.check_preprocessing(OnnxClassifier(path))


def test_shuffled_class_names_fail(tmp_path):
    model = onnx.load(MODEL_PATH)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    names = json.loads(metadata["class_names"])
    helper.set_model_props(model, metadata | {"class_names": json.dumps(names[1:] + names[:1])})
    onnx.save(model, tmp_path / "broken.onnx")
    result = run_tester(tmp_path / "broken.onnx")
    assert result.returncode == 1
    assert f"FAIL  {presets()[0].name}: expected 0 tench, got 0 goldfish" in result.stdout


@pytest.mark.parametrize(
    ("field", "value", "reason"), [("ir_version", 99, "IR version: 99"), ("domain", "unknown", "unknown")]
)
def test_refused_file_has_its_reason_in_one_line(tmp_path, field, value, reason):
    model = onnx.load(MODEL_PATH)
    setattr(model if field == "ir_version" else model.graph.node[-1], field, value)
    onnx.save(model, tmp_path / "refused.onnx")
    result = run_tester(tmp_path / "refused.onnx")
    assert result.returncode == 1
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
    assert ".cc:" not in result.stderr


def test_wrong_file_fails_under_pytest(tmp_path):
    onnx.save(broken_copy(onnx.load(MODEL_PATH), swap_channels), tmp_path / "broken.onnx")
    result = run_pytest(MODEL_PATH=str(tmp_path / "broken.onnx"))
    assert result.returncode == 1
    for name in (presets()[0].name, "preprocessing"):
        assert f"SUBFAILED[{name}]" in result.stdout
    assert "AssertionError: expected 0 tench, got " in result.stdout
    assert f"; {tmp_path / 'broken.onnx'}" in result.stdout


def test_works_from_any_folder_also_under_pytest(monkeypatch):
    monkeypatch.delenv("MODEL_PATH", raising=False)
    subprocess.run([sys.executable, ROOT / "test_onnx.py"], cwd="/", check=True, capture_output=True)
    result = run_pytest("-vv")
    for name in (*(image.name for image in presets()), "probabilities", "preprocessing"):
        assert f"test_onnx.py::test_onnx SUBPASSED[{name}]" in result.stdout


def test_warning_of_a_pytest_plugin_fails_no_check(tmp_path):
    (tmp_path / "noisy.py").write_text("import warnings\ndef pytest_collection_modifyitems(): warnings.warn('noise')\n")
    result = run_pytest("-p", "noisy", PYTHONPATH=str(tmp_path))
    assert "UserWarning: noise" in result.stdout
    assert result.returncode == 0, result.stdout


def test_missing_file_exits_with_1_and_what_to_do(tmp_path):
    result = run_tester(tmp_path / "nothing.onnx")
    assert result.returncode == 1
    assert "make it with `python convert_to_onnx.py`" in result.stderr


def test_expect_works_with_any_other_model(other_model):
    path, tench, newt = other_model
    result = run_tester(path, "--expect", f"{TENCH}={tench}", "--expect", f"{NEWT}={newt}")
    assert result.returncode == 0, result.stdout
    assert f"ok    images/n01440764_tench.jpeg: {tench} kind 0, probability " in result.stdout
    assert "4 passed, 0 failed" in result.stdout


def test_unexpected_class_fails_with_both_classes(tmp_path):
    path = of_other_classes(tmp_path / "other.onnx", [26, 0], "Sigmoid")
    result = run_tester(path, "--expect", f"{TENCH}=0", "--expect", f"{NEWT}=2")
    assert result.returncode == 1
    assert "FAIL  images/n01440764_tench.jpeg: expected 0, got 1 kind 0" in result.stdout
    assert "FAIL  images/n01632777_axolotl.jpeg: expected 2, got 0 kind 26" in result.stdout


def test_probabilities_after_softmax_must_sum_to_1(tmp_path):
    path = of_other_classes(tmp_path / "other.onnx", [0, 26, 7], "Sigmoid", described="softmax")
    result = run_tester(path, "--expect", f"{TENCH}=0")
    assert result.returncode == 1
    assert "FAIL  probabilities: expected a sum of 1 after softmax, got sums per image from " in result.stdout


def test_expectation_of_a_file_that_is_not_an_image_fails(tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    result = run_tester(MODEL_PATH, "--expect", f"{tmp_path / 'notes.txt'}=0")
    assert result.returncode == 1
    assert f"FAIL  {tmp_path / 'notes.txt'}: " in result.stdout
    wrong = run_tester(MODEL_PATH, "--expect", f"{TENCH}=tench")
    assert wrong.returncode == 2
    assert "expected IMAGE=CLASS_ID" in wrong.stderr


@pytest.mark.parametrize(
    ("network", "options", "classes"),
    [
        (networks.Small, ["--crop-pct", "0.9", "--interpolation", "bicubic", "--size", "96", "64"], 5),
        (networks.one_class, ["--activation", "sigmoid"], 2),
    ],
    ids=["cropped", "binary"],
)
def test_published_model_passes_and_a_wrong_class_fails(tmp_path, network, options, classes):
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    path = tmp_path / "model.onnx"
    model = ["--model", f"tests.networks:{network.__name__}", "--weights", tmp_path / "weights.pth"]
    command = [sys.executable, "convert_to_onnx.py", *model, "--output", path, *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = [run_tester(path, "--expect", f"{TENCH}={class_id}") for class_id in range(classes)]
    assert sorted(result.returncode for result in results) == [0] + [1] * (classes - 1)
    assert all("ok    preprocessing: " in result.stdout for result in results)
