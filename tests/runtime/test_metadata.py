"""metadata.py: metadata is read as the onnx package reads it, and invalid metadata is rejected."""

import json

import onnx
import pytest

from model import OnnxClassifier
from runtime.metadata import parse
from tests.runtime.test_backends import needs_openvino
from tests.server_process import MODEL_PATH

RIGHT = {
    "model": "m",
    "weights_digest": "sha256:0",
    "preprocessing": '{"size": [2, 3], "mean": [0.5, 0, 1], "std": [0.5, 1, 1], "channels": "RGB"}',
    "class_names": '["\\u00e4", "\U0001f41f"]',
    "activation": "none",
}


@pytest.mark.parametrize("provider", ["cpu", pytest.param("openvino", marks=needs_openvino)])
def test_metadata_equals_what_the_onnx_package_reads(provider):
    expected = {entry.key: entry.value for entry in onnx.load(MODEL_PATH).metadata_props}
    classifier = OnnxClassifier(MODEL_PATH, provider)
    assert classifier.model_name == expected["model"]
    assert classifier.weights_digest == expected["weights_digest"]
    assert list(classifier.class_names) == json.loads(expected["class_names"])
    assert list(classifier.preprocessor.size) == json.loads(expected["preprocessing"])["size"]
    assert list(classifier.preprocessor.mean) == json.loads(expected["preprocessing"])["mean"]
    assert classifier.activation == expected["activation"]


def test_accepts_texts_of_any_script():
    assert parse(RIGHT).class_names == ("\u00e4", "\U0001f41f")
    assert parse(RIGHT).preprocessing.size == (2, 3)
    assert parse({name: text for name, text in RIGHT.items() if name != "activation"}).activation is None


def preprocessing(**changed):
    right = {"size": [2, 3], "mean": [0.5], "std": [0.5]}
    return {"preprocessing": json.dumps(right | changed)}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"model": ""}, id="no name"),
        pytest.param({"activation": "relu"}, id="another activation"),
        pytest.param({"class_names": "7"}, id="a number for class names"),
        pytest.param({"class_names": "[]"}, id="no classes"),
        pytest.param({"class_names": '["a", null]'}, id="null for a class name"),
        pytest.param({"class_names": '["a", ""]'}, id="an empty class name"),
        pytest.param({"class_names": "[" * 100_000 + "]" * 100_000}, id="deeply nested"),
        pytest.param({"class_names": "["}, id="not JSON"),
        pytest.param({"preprocessing": "[]"}, id="not an object"),
        pytest.param({"preprocessing": "{}"}, id="no size"),
        pytest.param(preprocessing(size="ab"), id="a text for the size"),
        pytest.param(preprocessing(crop_pct=0), id="a crop of nothing"),
        pytest.param(preprocessing(crop_pct=1.01), id="a crop of more than the image"),
        pytest.param(preprocessing(interpolation="nearest"), id="another interpolation"),
        pytest.param(preprocessing(size=[2]), id="one side"),
        pytest.param(preprocessing(size=[2, 0]), id="a side of 0"),
        pytest.param(preprocessing(size=[2, 2.5]), id="half a pixel"),
        pytest.param(preprocessing(size=[30_000, 30_000]), id="a size of 11 GB"),
        pytest.param(preprocessing(mean=[float("nan")]), id="mean not a number"),
        pytest.param({"preprocessing": '{"size": [2, 3], "mean": [1e999], "std": [1]}'}, id="infinite mean"),
        pytest.param(preprocessing(mean=[0.5, 0.5], std=[1, 1]), id="two channels"),
        pytest.param(preprocessing(mean=[0.5] * 3), id="three means and one std"),
        pytest.param(preprocessing(std=[0]), id="std of 0"),
        pytest.param(preprocessing(std=[None]), id="null for std"),
    ],
)
def test_rejects_invalid_metadata(wrong):
    parse(RIGHT | preprocessing())
    with pytest.raises(ValueError, match=r"invalid metadata: ."):
        parse(RIGHT | wrong)


@pytest.mark.parametrize("absent", ["model", "weights_digest", "preprocessing", "class_names"])
def test_missing_field_is_named(absent):
    with pytest.raises(ValueError, match=f"invalid metadata: .*{absent}"):
        parse({name: text for name, text in RIGHT.items() if name != absent})
