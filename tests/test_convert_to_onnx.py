"""convert_to_onnx.py: what is in the file that it writes, and that it writes none that differs from PyTorch."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn

import convert_to_onnx
import pytorch_model
from convert_to_onnx import ConversionError, build_graph, compare, pixels_of, prove
from model import ImagePreprocessor, InvalidModel, OnnxClassifier
from pytorch_model import KNOWN_MODELS, Classifier, KnownModel, TrainedModel
from tests.broken import BROKEN, broken_copy, swap_channels
from weights import WeightsError

ROOT = Path(convert_to_onnx.__file__).parent
LITE = KNOWN_MODELS["efficientnet-lite0"]


def run_converter(*arguments, folder):
    command = [sys.executable, ROOT / "convert_to_onnx.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Untrained ResNet-18 weights under which a picture still matters: fresh ones give every class 0.001."""
    torch.manual_seed(0)
    network = Classifier().train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(4, 3, 64, 64))
        network.fc.weight *= 8
    path = tmp_path_factory.mktemp("weights") / "untrained.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def output(weights):
    """The file that the command makes of those weights."""
    result = run_converter("--weights", weights.name, "--output", "resnet18.onnx", folder=weights.parent)
    assert result.returncode == 0, result.stderr
    assert sorted(weights.parent.iterdir()) == [weights.with_name("resnet18.onnx"), weights]
    return weights.with_name("resnet18.onnx")


@pytest.fixture(scope="module")
def lite():
    return pytorch_model.load("efficientnet-lite0")


@pytest.fixture(scope="module")
def lite_graph(lite):
    return build_graph(lite, LITE, "efficientnet-lite0")


@pytest.mark.parametrize("batch", [1, 3])
def test_the_file_gives_pytorchs_probabilities_on_the_same_pixels(weights, output, batch):
    classifier = OnnxClassifier(output)
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    with torch.inference_mode():
        normalized = torch.from_numpy(ImagePreprocessor().normalize(pixels))
        expected = pytorch_model.load("resnet18", weights).network(normalized).softmax(1).numpy()
    assert expected.max() > 0.1
    np.testing.assert_allclose(classifier.predict(pixels), expected, atol=1e-4, rtol=0)


def test_height_width_and_batch_are_free(output):
    classifier = OnnxClassifier(output)
    for shape in [(1, 1, 1, 3), (2, 300, 20, 3), (5, 30, 400, 3)]:
        assert classifier.predict(np.zeros(shape, np.uint8)).shape == (shape[0], 1000)


def test_the_file_has_one_input_and_one_output_as_documented(output):
    session = InferenceSession(output)
    (image,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", "height", "width", 3])
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    assert probabilities.shape == ["batch", 1000]


def test_the_metadata_says_everything_about_the_model(weights, output):
    metadata = {entry.key: entry.value for entry in onnx.load(output).metadata_props}
    assert metadata["model"] == "resnet18"
    assert metadata["weights_digest"] == f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
    assert json.loads(metadata["class_names"]) == pytorch_model.imagenet_class_names()
    assert json.loads(metadata["preprocessing"]) == {
        "size": [224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "channels": "RGB",
    }


def test_no_path_of_this_machine_is_in_the_file(weights, output):
    content = output.read_bytes()
    for folder in (weights.parent, ROOT, sys.prefix):
        assert f"{folder}/".encode() not in content


def test_the_file_passes_the_full_check_of_onnx(output):
    onnx.checker.check_model(output, full_check=True)


def test_onnx_runtime_loads_the_file_without_a_warning(output):
    code = (
        "import onnxruntime as ort, sys; options = ort.SessionOptions(); options.log_severity_level = 2; "
        "ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])"
    )
    result = subprocess.run([sys.executable, "-c", code, output], capture_output=True, text=True, check=True)
    # Some virtual machines have a graphics card that can't be read; that isn't about the file.
    assert [line for line in result.stderr.splitlines() if "device_discovery" not in line] == []


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 300), (223, 225), (224, 224), (448, 449), (900, 31), (31, 900), (1500, 2001)]
)
def test_the_graphs_own_resize_is_pillows_to_one_level(output, size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    preprocessor = ImagePreprocessor()
    expected = preprocessor.normalize(preprocessor.resize(picture)[None])
    one_level = (1 / 255 / np.float32(preprocessor.std)).reshape(3, 1, 1)
    assert (np.abs(pixels_of(output)(picture[None]) - expected) <= one_level + 1e-5).all()


@pytest.fixture
def saved(tmp_path):
    def save(graph):
        onnx.save(graph, tmp_path / "graph.onnx")
        return tmp_path / "graph.onnx"

    return save


LITE_PREPROCESSOR = ImagePreprocessor(LITE.size, LITE.mean, LITE.std)


def test_the_proof_accepts_the_right_graph(lite, lite_graph, saved):
    agreement = prove(saved(lite_graph), lite.network, LITE_PREPROCESSOR)
    assert agreement.pictures >= 9
    assert agreement.levels <= 1.01
    assert agreement.same_pixels < 1e-4
    assert agreement.resized < 5e-3


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda function: function.__name__)
def test_the_proof_refuses_a_broken_graph(lite, lite_graph, saved, break_it):
    path = saved(broken_copy(lite_graph, break_it))
    with pytest.raises((ConversionError, InvalidModel), match=r"from Pillow's|does not give the probabilities"):
        prove(path, lite.network, LITE_PREPROCESSOR)


@pytest.mark.parametrize("break_it", BROKEN[:4], ids=lambda function: function.__name__)
def test_the_proof_sees_wrong_pixels_whatever_the_weights(weights, output, saved, break_it):
    path = saved(broken_copy(onnx.load(output), break_it))
    with pytest.raises(ConversionError, match=r"the graph's pixels are up to .* of 255 from Pillow's"):
        prove(path, pytorch_model.load("resnet18", weights).network, ImagePreprocessor())


def test_the_proof_refuses_a_file_that_describes_another_preprocessing(lite, lite_graph, saved):
    with pytest.raises(ConversionError, match=r"the file describes .*, the model wants"):
        prove(saved(lite_graph), lite.network, ImagePreprocessor())


def test_a_refused_file_is_not_written_and_the_old_one_stays(lite_graph, monkeypatch, tmp_path):
    broken = broken_copy(lite_graph, swap_channels)
    monkeypatch.setattr(convert_to_onnx, "build_graph", lambda *_: broken)
    (tmp_path / "classifier.onnx").write_bytes(b"old")
    with pytest.raises(ConversionError):
        convert_to_onnx.convert("efficientnet-lite0", None, tmp_path / "classifier.onnx")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"classifier.onnx": b"old"}


@pytest.mark.parametrize(
    ("actual", "agrees"),
    [
        pytest.param([0.50004, 0.49996], True, id="within the tolerance"),
        pytest.param([0.49998, 0.50002], True, id="the other of two equals first"),
        pytest.param([0.5003, 0.4997], False, id="beyond the tolerance"),
        pytest.param([np.nan, np.nan], False, id="not numbers"),
    ],
)
def test_probabilities_agree_only_within_the_tolerance(actual, agrees):
    expected = np.array([[0.5, 0.5]])
    if agrees:
        assert compare("picture", np.array([actual]), expected, 1e-4) == pytest.approx(abs(actual[0] - 0.5))
    else:
        with pytest.raises(ConversionError, match=r"picture: .* 1e-04 is allowed"):
            compare("picture", np.array([actual]), expected, 1e-4)


def test_class_names_that_are_not_as_many_as_the_classes_are_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    known = KnownModel(lambda: network, Path, (), size=(8, 8), class_names=lambda: ["only one"])
    with pytest.raises(ConversionError, match=r"the network has 3 classes, its class names are 1"):
        build_graph(TrainedModel(network, Path("none"), "sha256:0"), known, "tiny")


def test_an_unknown_model_is_a_usage_error(tmp_path):
    result = run_converter("--model", "vgg", folder=tmp_path)
    assert result.returncode == 2
    assert re.search(r"invalid choice: '?vgg", result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_absent_weights_end_with_a_sentence_and_the_old_file_stays(tmp_path):
    (tmp_path / "classifier.onnx").write_bytes(b"old")
    result = run_converter("--weights", "absent.pth", folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "convert_to_onnx.py: absent.pth is not there\n"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"classifier.onnx": b"old"}


def test_auto_takes_resnet18_where_its_weights_are(monkeypatch, weights):
    digest = f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
    there = dataclasses.replace(KNOWN_MODELS["resnet18"], weights_file=lambda: weights, digests=(digest,))
    monkeypatch.setitem(KNOWN_MODELS, "resnet18", there)
    assert convert_to_onnx.choose_model() == "resnet18"


def test_auto_falls_back_and_says_so(monkeypatch, capsys):
    def refuse(_):
        raise WeightsError("no network here")

    monkeypatch.setattr(pytorch_model, "known_weights", refuse)
    assert convert_to_onnx.choose_model() == "efficientnet-lite0"
    stderr = capsys.readouterr().err
    assert "no network here" in stderr
    assert "USING efficientnet-lite0 INSTEAD OF resnet18" in stderr
