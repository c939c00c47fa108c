"""custom_model.py: any classifier is served as PyTorch and Pillow have it, and what would go wrong is refused."""

import base64
import functools
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import app
from conversion import ConversionError, custom_model
from convert_to_onnx import convert
from model import OnnxClassifier
from tests import networks
from tests.runtime.test_backends import needs_openvino
from tests.server_process import NEWT, TENCH

SIZE = (96, 128)
GRAY = {"channels": 1, "mean": [0.4], "std": [0.2]}


def load(name, folder, **options):
    """Load a network of tests/networks.py, with its own fresh weights from a file."""
    state_dict = getattr(networks, name)().state_dict()
    torch.save(state_dict, folder / "weights.pth")
    return custom_model.load(f"tests.networks:{name}", folder / "weights.pth", **{"size": SIZE} | options)


def pytorchs(name, activation, image, described):
    """The probabilities of an image, from nothing but Pillow, NumPy and PyTorch."""
    image = Image.open(image).resize(SIZE[::-1], Image.Resampling.BILINEAR)
    if described.get("channels") == 1:
        image = image.convert("L")
    pixels = (np.asarray(image, np.float64).reshape(*SIZE, -1) / 255 - described["mean"]) / described["std"]
    with torch.inference_mode():
        logits = getattr(networks, name)().eval()(torch.from_numpy(pixels).float().permute(2, 0, 1)[None].contiguous())
    return activation(logits)[0].numpy()


def softmax(logits):
    return logits.softmax(1)


def as_they_are(outputs):
    return outputs


def both_classes(output):
    return torch.cat([1 - output.sigmoid(), output.sigmoid()], 1)


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OTHER = {"mean": [-0.5, 0, 1e-05], "std": [1, 0.5, 0.25]}
CASES = {  # options, and what PyTorch does after the network
    "Small": ({}, softmax),
    "Small, of other pixels": (OTHER | {"activation": "sigmoid"}, torch.sigmoid),
    "Sigmoided": ({"activation": "none"}, as_they_are),
    "gray": (GRAY, softmax),
    "one_class": ({"activation": "sigmoid"}, both_classes),
    "Viewed": ({}, softmax),
    "gray_viewed": (GRAY, softmax),
    "Double": ({}, softmax),
    "Wrapper": ({}, softmax),
    "Looping": ({}, softmax),
    "ten_thousand_classes": ({}, softmax),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Convert a case, once."""

    @functools.cache
    def convert_case(case):
        folder = tmp_path_factory.mktemp("converted")
        convert(load(case.partition(",")[0], folder, **CASES[case][0]), folder / "any.onnx")
        return folder / "any.onnx"

    return convert_case


@pytest.mark.parametrize("provider", ["cpu", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("case", CASES)
def test_serves_the_probabilities_of_pytorch(converted, case, provider):
    name, (options, activation) = case.partition(",")[0], CASES[case]
    classifier = OnnxClassifier(converted(case), provider)
    assert (classifier.model_name, classifier.preprocessor.size) == (f"tests.networks.{name}", SIZE)
    described = IMAGENET | options
    tench, newt = (pytorchs(name, activation, image, described) for image in (TENCH, NEWT))
    assert np.abs(tench - newt).max() > 5e-5
    for image, expected in ((TENCH, tench), (NEWT, newt)):
        row = classifier.predict(classifier.preprocessor(image)[None])[0]
        np.testing.assert_allclose(row, expected, atol=1e-5)
        assert row.dtype == np.float32
        best, *more = classifier.top(row, 3)
        assert (best["class_id"], best["class_name"]) == (expected.argmax(), f"class {expected.argmax()}")
        assert len(more) == min(3, len(row)) - 1


def test_the_server_names_no_more_classes_than_there_are(monkeypatch, tmp_path):
    (tmp_path / "labels.txt").write_text("nöthing else\n\n", encoding="utf-8")
    network = load("one_class", tmp_path, activation="sigmoid", labels=tmp_path / "labels.txt")
    convert(network, tmp_path / "any.onnx")
    monkeypatch.setattr(app, "classifier", OnnxClassifier(tmp_path / "any.onnx"))
    app.warm_up()
    image = base64.b64encode(TENCH.read_bytes()).decode()
    answer = app.inference({"image": image, "top_k": 7, "probabilities": True})
    names = {entry["class_id"]: entry["class_name"] for entry in answer["predictions"]}
    assert names == {0: "not nöthing else", 1: "nöthing else"}
    assert answer["class_id"] == int(answer["probabilities"][1] > 0.5)
    assert sum(answer["probabilities"]) == pytest.approx(1)


def test_accepts_a_network_in_half_precision(tmp_path):
    trained = load("half_precision", tmp_path)
    assert {parameter.dtype for parameter in trained.network.parameters()} == {torch.float32}
    assert not any(module.training for module in trained.network.modules())


def test_accepts_a_network_whose_train_returns_nothing(tmp_path):
    assert not load("Forgetful", tmp_path).network.training


def test_names_a_module_of_ours_that_another_file_imports(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text("class Net: ...\n")
    (tmp_path / "architecture.py").write_text("from model import Net\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ConversionError, match="named model too: rename yours"):
        custom_model.build("architecture:Net")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Pair", r"gives tuple; expected one tensor"),
        ("Dictionary", r"(?s)gives dict; expected one tensor.*class Logits\(Dictionary\):.*return super"),
        ("Squeezed", r"gives torch.float32 \[5\], not float \[1, classes\]"),
        ("InPlace", r"in place"),
        ("NoClasses", r"gives torch.float32 \[4\], not float \[4, classes\]"),
        ("NoOutputs", r"gives torch.float32 \[4, 0\]"),
        ("ClassIds", r"gives torch.int64 \[4, 1\], not float"),
        ("NotNumbers", r"outputs are not all finite numbers"),
        ("Random", r"random"),
        ("AcrossTheBatch", r"depends on the rest of the batch"),
        ("Softmaxed", r"from 0.*: give --activation none if they are probabilities"),
        ("Sigmoided", r"give --activation none"),
        ("one_class", r"softmax over one output"),
    ],
)
def test_refuses_a_network_that_is_not_a_classifier(tmp_path, name, message):
    with pytest.raises(ConversionError, match=message):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tests.nowhere:Small", r"tests.nowhere:Small failed: ModuleNotFoundError: No module named"),
        (
            "tests.networks:Smal",
            r"tests.networks:Smal failed: AttributeError: module 'tests.networks' has no attribute 'Smal'",
        ),
        ("sys:maxsize", r"sys:maxsize failed: TypeError: 'int' object is not callable"),
        ("tests.networks:with_arguments", r"failed: TypeError: .*'classes'.* callable without arguments"),
        ("tests.networks:not_a_network", r"not_a_network failed: .*list"),
        ("tests.networks:exiting", r"exiting failed: SystemExit: usage"),
        ("tests.networks:failing", r"failing failed: KeyError: 'no such thing' \(.*networks.py, line \d+: raise"),
    ],
)
def test_refuses_what_does_not_build_a_network(tmp_path, model, message):
    with pytest.raises(ConversionError, match=message):
        custom_model.load(model, tmp_path / "weights.pth")


def test_reports_where_a_module_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mistaken.py").write_text("import torch\n\nx = y\n")
    with pytest.raises(ConversionError, match=r"NameError: name 'y' is not defined \(.*mistaken.py, line 3: x = y\)"):
        custom_model.build("mistaken:Network")


def test_an_error_has_no_line_of_the_converters_own():
    with pytest.raises(RuntimeError) as failed:
        custom_model.count_outputs(torch.nn.Conv2d(1, 1, 1), (3, 8, 8), None)
    assert f"({__file__}, line" in custom_model.format_error(failed.value)


def test_a_module_needs_no_name_that_python_could_import(tmp_path, monkeypatch):
    (tmp_path / "my-network.py").write_text("from torch.nn import Identity as Network\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert isinstance(custom_model.build("my-network:Network"), torch.nn.Identity)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.py", "Net"),
        ("client.py", "Net"),
        ("runtime/__init__.py", "Net"),
        ("serving/networks.py", "Net"),
        ("pytorch_model.py", "Classifier"),  # ours has one too
    ],
)
def test_refuses_a_module_named_like_one_of_ours(tmp_path, monkeypatch, file, name):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"from torch.nn import Identity as {name}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ConversionError, match=r"rename yours"):
        custom_model.build(f"{file.removesuffix('.py').replace('/', '.')}:{name}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"mean": [0.5]}, r"--mean must be 3 numbers", id="one mean"),
        pytest.param({"std": [1, 1, 1, 1]}, r"--std must be 3 numbers", id="four std"),
        pytest.param(GRAY | {"mean": [0, 0, 0]}, r"--mean must be 1 numbers", id="three means for gray"),
        pytest.param({"mean": [0, 0, float("nan")]}, r"--mean must be 3 numbers", id="mean not a number"),
        pytest.param({"std": [1, float("inf"), 1]}, r"--std must be 3 numbers", id="infinite std"),
        pytest.param(
            {"mean": [123.7, 116.3, 103.5]}, r"--mean must be 3 numbers.*: divide .* by 255", id="mean of 0 to 255"
        ),
        pytest.param({"std": [58.4, 57.1, 57.4]}, r"--std must be 3 numbers.*: divide .* by 255", id="std of 0 to 255"),
        pytest.param({"std": [1, 0, 1]}, r"--std must be .* more than 0", id="std of 0"),
        pytest.param({"channels": 1}, r"--mean must be 1 numbers", id="gray without mean and std"),
        pytest.param({"activation": "none"}, r"from -.* to .*, else softmax or sigmoid", id="logits as probabilities"),
    ],
)
def test_refuses_meaningless_options(tmp_path, options, message):
    with pytest.raises(ConversionError, match=message):
        load("Small", tmp_path, **options)


NAMES = ["tench", "goldfish", "white\u2028shark\x85", "form\ffeed", "hen"]
LABELS = {
    "lines": "\n".join(NAMES),
    "lines of Windows": "\r\n".join(NAMES) + "\r\n\r\n",
    "list": json.dumps(NAMES),
    "dictionary": json.dumps({str(number): name for number, name in reversed([*enumerate(NAMES)])}),
    "dictionary of WordNet ids": json.dumps({number: [f"n0144{number}", name] for number, name in enumerate(NAMES)}),
    "id2label": json.dumps({"id2label": {str(number): name for number, name in enumerate(NAMES)}, "hidden": 7}),
    "indented": json.dumps(NAMES, ensure_ascii=False, indent=2),
}


@pytest.mark.parametrize("text", LABELS.values(), ids=LABELS)
def test_reads_class_names_in_every_common_form(tmp_path, text):
    (tmp_path / "labels.txt").write_text(text, encoding="utf-8")
    assert load("Small", tmp_path, labels=tmp_path / "labels.txt").class_names == [name.strip() for name in NAMES]


def test_warns_of_classes_with_the_same_name(tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("crane\nhen\ncrane\ncock\nowl")
    load("Small", tmp_path, labels=tmp_path / "labels.txt")
    assert capsys.readouterr().err.endswith("repeated names: crane\n")


@pytest.mark.parametrize(("text", "names"), [("hot dog", ["not hot dog", "hot dog"]), ("no\nyes", ["no", "yes"])])
def test_one_output_is_of_two_classes(tmp_path, text, names):
    (tmp_path / "labels.txt").write_text(text)
    trained = load("one_class", tmp_path, activation="sigmoid", labels=tmp_path / "labels.txt")
    assert trained.class_names == names


def test_two_outputs_need_two_names(tmp_path):
    (tmp_path / "labels.txt").write_text("hot dog")
    with pytest.raises(ConversionError, match="has 1 class names; the network has 2"):
        custom_model.name_classes(tmp_path / "labels.txt", 2)


def test_an_activation_that_is_given_is_not_questioned(tmp_path):
    assert load("Sigmoided", tmp_path, activation="sigmoid").activation == "sigmoid"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'{"0": "a", "2": "b"}', "KeyError", id="an id is missing"),
        pytest.param(b'{"tench": "fish"}', "ValueError", id="no ids"),
        pytest.param(b"[1, 2, 3, 4, 5]", "TypeError", id="numbers"),
        pytest.param(b'["a", "b"', "JSONDecodeError", id="half of a list"),
        pytest.param(b"[" * 9999, "RecursionError", id="deep"),
        pytest.param(b'{"id2label": null}', "AttributeError", id="no names"),
        pytest.param(b"a\nb\nc\nd\n", r"has 4 class names; the network has 5", id="too few"),
        pytest.param(b"a\n\nb\nc\nd", r"class 1 is empty", id="an empty line"),
        pytest.param(b"\xff\xfea\nb", r"labels.txt cannot be read.*utf-8", id="not UTF-8"),
        pytest.param(None, r"labels.txt cannot be read.*No such file", id="absent"),
    ],
)
def test_refuses_labels_that_do_not_fit(tmp_path, content, message):
    if content is not None:
        (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        load("Small", tmp_path, labels=tmp_path / "labels.txt")
