"""convert_to_onnx.py: what is in the file that it writes, and that it writes none that differs from PyTorch."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from PIL import Image
from torch import nn

import convert_to_onnx
from conversion import ConversionError, trained_model
from conversion.preprocessing import open_graph
from convert_to_onnx import build_graph, convert
from model import ImagePreprocessor, OnnxClassifier
from pytorch_model import Classifier
from runtime.errors import InvalidModel
from tests import networks
from tests.graphs import broken_copy, swap_channels
from tests.networks import Small, gray, trained
from tests.server_process import ROOT, TENCH


def run_converter(*arguments, folder, **environment):
    command = [sys.executable, ROOT / "convert_to_onnx.py", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Untrained ResNet-18 weights under which an image still matters: fresh ones give every class 0.001."""
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
def output(weights, tmp_path_factory):
    """The file that the command makes of those weights, without torchvision: PyTorch warns of that in four lines."""
    absent = tmp_path_factory.mktemp("without")
    (absent / "torchvision.py").write_text("raise ImportError")
    command = ["--weights", weights.name, "--output", "resnet18.onnx"]
    result = run_converter(*command, folder=weights.parent, PYTHONPATH=str(absent))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    steps = ["weights", "Preprocessing(size=(224, 224), mean=", "export", "comparing", "on 9 images", "resnet18.onnx, "]
    lines = zip(result.stdout.splitlines(), steps, strict=True)
    assert all(line.startswith(f"resnet18: {step}") for line, step in lines), result.stdout
    assert sorted(weights.parent.iterdir()) == [weights.with_name("resnet18.onnx"), weights]
    return weights.with_name("resnet18.onnx")


@pytest.mark.parametrize("batch", [1, 3])
def test_probabilities_are_pytorchs_on_the_same_pixels(weights, output, batch):
    classifier = OnnxClassifier(output)
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    with torch.inference_mode():
        normalized = torch.from_numpy(ImagePreprocessor().normalize(pixels))
        expected = trained_model.load("resnet18", weights).network(normalized).numpy()
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
    assert json.loads(metadata["class_names"]) == trained_model.IMAGENET_CLASSES
    assert json.loads(metadata["preprocessing"]) == {
        "size": [224, 224],
        "crop_pct": None,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
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
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    preprocessor = ImagePreprocessor()
    expected = preprocessor.normalize(preprocessor.resize(image)[None])
    one_level = (1 / 255 / np.float32(preprocessor.std)).reshape(3, 1, 1)
    assert (np.abs(open_graph(output)(image[None]) - expected) <= one_level + 1e-5).all()


def test_the_server_and_the_graph_crop_as_the_file_describes(tmp_path):
    network = trained(Small(), crop_pct=0.875)
    convert(network, tmp_path / "cropped.onnx")
    classifier = OnnxClassifier(tmp_path / "cropped.onnx")
    assert classifier.preprocessor == network.preprocessor
    image = classifier.preprocessor.decode(TENCH)
    from_file, from_raw = classifier.predict(classifier.preprocessor(TENCH)[None]), classifier.predict(image[None])
    squashed = classifier.predict(dataclasses.replace(classifier.preprocessor, crop_pct=None)(TENCH)[None])
    np.testing.assert_allclose(from_raw, from_file, atol=2e-3)
    assert np.abs(squashed - from_file).max() > 0.01


def test_a_refused_file_is_not_written_and_the_old_one_stays(monkeypatch, tmp_path):
    network = trained(Small())
    broken = broken_copy(build_graph(network), swap_channels)
    monkeypatch.setattr(convert_to_onnx, "build_graph", lambda *_: broken)
    (tmp_path / "classifier.onnx").write_bytes(b"old")
    with pytest.raises(ConversionError, match="from Pillow's"):
        convert(network, tmp_path / "classifier.onnx")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"classifier.onnx": b"old"}


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Convert a network of tests/networks.py with its own weights, and return why that fails."""

    def run(name, *options):
        torch.save(getattr(networks, name)().state_dict(), tmp_path / "w.pth")
        command = ["--model", f"tests.networks:{name}", "--weights", "w.pth", "--size", "40", "56", *options]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(sys, "argv", ["convert_to_onnx.py", *command, "--output", "x.onnx"])
        with pytest.raises(SystemExit) as ended:
            convert_to_onnx.main()
        assert [file.name for file in tmp_path.iterdir()] == ["w.pth"]
        return ended.value.code

    return run


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ("ControlFlow", r"data-dependent .*networks.py, line \d+: if x.max\(\) > -1e9"),
        ("OneByOne", r"inferred a static shape"),
        ("NotInOnnx", r"No ONNX function found for .*svd"),
        ("Autocast", r"bfloat16"),
        ("gray", r"to have 1 channels, but got 3.*networks.py"),
        ("FailsAlone", r"IndexError"),
        ("Exits", r"SystemExit"),
        ("FailsOnOneColor", r"ValueError: of one color \(.*networks.py, line \d+: raise"),
    ],
)
def test_a_network_that_fails_is_refused_without_a_traceback(refused, capfd, network, reason):
    message, advice = refused(network).splitlines()
    assert re.match(f"convert_to_onnx.py: tests.networks:{network} cannot be converted: .*{reason}", message)
    assert "replace steps" in advice and "--channels" in advice
    assert capfd.readouterr().err == ""


def test_advice_about_custom_models_is_only_for_them(monkeypatch, tmp_path):
    def fail(trained):
        raise RuntimeError("no operator")

    monkeypatch.setattr(convert_to_onnx, "build_graph", fail)
    command = ["--model", "efficientnet-lite0", "--output", str(tmp_path / "x.onnx")]
    monkeypatch.setattr(sys, "argv", ["convert_to_onnx.py", *command])
    with pytest.raises(SystemExit) as ended:
        convert_to_onnx.main()
    [line] = ended.value.code.splitlines()
    assert line.startswith("convert_to_onnx.py: efficientnet-lite0 cannot be converted: RuntimeError: no operator")


@pytest.mark.parametrize("options", [["--crop-pct", "87.5"], ["--crop-pct", "nan"], ["--size", "0", "9"]])
def test_a_wrong_crop_or_size_is_wrong_usage(refused, capsys, options):
    assert refused("Small", *options) == 2
    assert re.search(f"error: {options[0]} must be .*from", capsys.readouterr().err)


def test_what_onnx_runtime_cannot_run_is_refused(monkeypatch, refused):
    graph = build_graph(trained(Small()))
    graph.graph.node[-1].op_type = "Hardmax"
    graph.graph.node[-1].domain = "a user.elses"
    monkeypatch.setattr(convert_to_onnx, "build_graph", lambda *_: graph)
    assert re.search(r"cannot be converted: .*Hardmax", refused("Small"))


def test_more_weights_than_an_onnx_file_holds_are_refused():
    network = Small()
    network.more = nn.Parameter(torch.empty(600_000_000))
    with pytest.raises(ConversionError, match=r"the weights are 2.2 GiB"):
        build_graph(trained(network))


def test_refuses_a_wrong_number_of_class_names(tmp_path):
    with pytest.raises(InvalidModel, match=r"probabilities of 1 classes"):
        convert(trained(Small(), class_names=["only one"]), tmp_path / "classifier.onnx")
    assert list(tmp_path.iterdir()) == []


def test_gray_is_pillows_to_the_bit(tmp_path):
    network = trained(gray(), size=(512, 512), mean=(0.0,), std=(1.0,))
    onnx.save(build_graph(network), tmp_path / "gray.onnx")
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    levels = open_graph(tmp_path / "gray.onnx")(image[None])[0, 0] * 255
    np.testing.assert_array_equal(levels.round(4), np.asarray(Image.fromarray(image).convert("L")))


CUSTOM = ["--model", "a:b", "--weights", "w.pth"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param(["--model", "vgg"], "unknown --model 'vgg'", id="no such model"),
        pytest.param(["--model", "a:b"], "--model MODULE:CALLABLE --weights FILE", id="no weights"),
        pytest.param(["--model", ":b", "--weights", "w.pth"], "MODULE:CALLABLE", id="no module"),
        pytest.param(["--model", "a:", "--weights", "w.pth"], "MODULE:CALLABLE", id="no callable"),
        pytest.param(["--mean", "0", "0", "0"], "resnet18 has its own mean", id="the mean of a known model"),
        pytest.param(["--model", "auto", "--size", "9", "9", "--labels", "l.txt"], "own size, labels", id="of auto"),
        pytest.param([*CUSTOM, "--interpolation", "nearest"], "--interpolation: invalid choice", id="nearest"),
        pytest.param([*CUSTOM, "--size", "96"], "--size: expected 2 arguments", id="one side"),
        pytest.param([*CUSTOM, "--size", "a", "b"], "--size: invalid int", id="no number"),
        pytest.param([*CUSTOM, "--channels", "4"], "--channels: invalid choice", id="four channels"),
        pytest.param([*CUSTOM, "--activation", "relu"], "--activation: invalid choice", id="no such activation"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(monkeypatch, capsys, command, message):
    monkeypatch.setattr(sys, "argv", ["convert_to_onnx.py", *command])
    with pytest.raises(SystemExit) as ended:
        convert_to_onnx.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_refused_network_ends_with_a_sentence_and_no_file(tmp_path):
    (tmp_path / "mine.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(3, 2).wieght\n")
    (tmp_path / "w.pth").touch()
    result = run_converter("--model", "mine:build", "--weights", "w.pth", "--output", "x.onnx", folder=tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(
        r"convert_to_onnx.py: mine:build failed: AttributeError: .*'wieght'.*mine.py, line 5: .*\n", result.stderr
    )
    assert list(tmp_path.glob("*.onnx*")) == []


def test_missing_weights_leave_the_old_file(tmp_path):
    (tmp_path / "classifier.onnx").write_bytes(b"old")
    result = run_converter("--weights", "absent.pth", "--output", "classifier.onnx", folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "convert_to_onnx.py: absent.pth is not a file that exists: name a file\n"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"classifier.onnx": b"old"}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("absent/x.onnx", "No such file or directory"),
        ("file/x.onnx", "Not a directory"),
        ("/proc/x.onnx", "No such file or directory"),  # a folder that not even root may write to
    ],
)
def test_refuses_an_unwritable_output_first(monkeypatch, tmp_path, output, reason):
    (tmp_path / "file").touch()
    output = tmp_path / output
    monkeypatch.setattr(sys, "argv", ["convert_to_onnx.py", "--weights", "absent.pth", "--output", str(output)])
    with pytest.raises(SystemExit, match=f"{reason}: '{output.parent}/"):
        convert_to_onnx.main()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("output", [".", "folder"])
def test_refuses_a_folder_as_output_first(monkeypatch, tmp_path, output):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["convert_to_onnx.py", "--weights", "absent.pth", "--output", output])
    with pytest.raises(SystemExit, match=f"{output} is a folder: name a file"):
        convert_to_onnx.main()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("moment", ["exporting", "comparing"])
def test_ctrl_c_ends_it_with_130_and_leaves_nothing(tmp_path, moment):
    torch.save(Small().state_dict(), tmp_path / "w.pth")
    command = [sys.executable, ROOT / "convert_to_onnx.py", "--model", "tests.networks:Small", "--weights", "w.pth"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--output", "x.onnx"], cwd=tmp_path, **pipes) as process:
        assert any(line.startswith(f"tests.networks.Small: {moment}") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == "convert_to_onnx.py: interrupted\n"
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_the_default_output_is_next_to_the_script(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["convert_to_onnx.py", "--weights", "w.pth", "--weights-key", "ema"])
    options = convert_to_onnx.parse_args()
    assert (options.output, options.custom_options) == (ROOT / "classifier.onnx", {})
