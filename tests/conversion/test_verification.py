"""verification.py: it accepts the right graph, and sees every way in which one can be wrong."""

import json
import re

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from conversion import ConversionError
from conversion.verification import compare_probabilities, verify
from convert_to_onnx import build_graph
from runtime.errors import InvalidModel
from tests.graphs import BROKEN, broken_copy
from tests.networks import AcrossTheBatch, ForBatchesOfOneAndFour, Random, Small, trained


@pytest.fixture(scope="module")
def small():
    return trained(Small())


@pytest.fixture(scope="module")
def small_graph(small):
    return build_graph(small)


@pytest.fixture
def saved(tmp_path):
    def save(graph):
        onnx.save(graph, tmp_path / "graph.onnx")
        return tmp_path / "graph.onnx"

    return save


def test_the_right_graph_is_accepted(small, small_graph, saved):
    agreement = verify(saved(small_graph), small)
    images, levels, _, difference = map(float, re.findall(r"[\d.]+(?:e-\d+)?", agreement))
    assert images >= 9
    assert levels <= 1.01
    assert difference < 1e-4


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda function: function.__name__)
def test_a_broken_graph_is_refused(small, small_graph, saved, break_it):
    path = saved(broken_copy(small_graph, break_it))
    with pytest.raises((ConversionError, InvalidModel), match=r"from Pillow's|does not return probabilities"):
        verify(path, small)


@pytest.fixture(scope="module")
def blind():
    """A network that says the same whatever it sees, and its graph."""
    network = Small()
    torch.nn.init.zeros_(network.head.weight)
    return trained(network), build_graph(trained(network))


@pytest.mark.parametrize("break_it", BROKEN[:4], ids=lambda function: function.__name__)
def test_wrong_pixels_are_seen_whatever_the_weights(blind, saved, break_it):
    network, graph = blind
    with pytest.raises(ConversionError, match=r"the graph's pixels are up to .* of 255 from Pillow's"):
        verify(saved(broken_copy(graph, break_it)), network)


def test_refuses_pixels_other_than_the_file_describes(small, small_graph, saved):
    graph = onnx.ModelProto()
    graph.CopyFrom(small_graph)
    described = json.dumps(msgspec.to_builtins(small.preprocessing_metadata) | {"interpolation": "bicubic"})
    next(entry for entry in graph.metadata_props if entry.key == "preprocessing").value = described
    with pytest.raises(ConversionError, match=r"from Pillow's"):
        verify(saved(graph), small)


def nudged():
    network = Small()
    network.head.bias.data[0] += 0.05
    return network


@pytest.mark.parametrize("other", [Random(), nudged()], ids=["random", "all but the same weights"])
def test_refuses_the_results_of_another_network(small_graph, saved, other):
    with pytest.raises(ConversionError, match=r"one by one: ONNX Runtime's .* up to [\d.e-]+ from PyTorch's"):
        verify(saved(small_graph), trained(other))


def test_refuses_results_that_depend_on_the_batch(saved):
    network = trained(AcrossTheBatch())
    with pytest.raises(ConversionError, match="in a batch: ONNX Runtime"):
        verify(saved(build_graph(network)), network)


def double_resized(graph):
    """Double the pixels of images that the graph resizes, behind the tensor whose pixels are compared."""
    node = next(node for node in graph.node if "preprocessing/pixels" in node.input)
    node.input[list(node.input).index("preprocessing/pixels")] = "scaled"
    for name, factor in (("once", 1), ("twice", 2)):
        graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), name))
    factor = helper.make_node("Where", ["preprocessing/is_resized", "once", "twice"], ["factor"])
    position = list(graph.node).index(node)
    graph.node.insert(position, helper.make_node("Mul", ["preprocessing/pixels", "factor"], ["scaled"]))
    graph.node.insert(position, factor)


def test_refuses_wrong_results_of_images_that_the_graph_resizes(small, small_graph, saved):
    with pytest.raises(ConversionError, match="resized by the graph: ONNX Runtime"):
        verify(saved(broken_copy(small_graph, double_resized)), small)


def test_refuses_a_wrong_number_of_rows(saved):
    network = trained(ForBatchesOfOneAndFour())
    with pytest.raises(ConversionError, match=r"ONNX Runtime gives \[1, 45\], PyTorch \[9, 5\]"):
        verify(saved(build_graph(network)), network)


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
        assert compare_probabilities("one by one", np.array([actual]), expected) == pytest.approx(abs(actual[0] - 0.5))
    else:
        with pytest.raises(ConversionError, match=r"one by one: .* from PyTorch's"):
            compare_probabilities("one by one", np.array([actual]), expected)


def test_small_probabilities_have_a_small_tolerance():
    expected = np.full((1, 10_000), 1e-4)
    assert compare_probabilities("one by one", expected + 5e-7, expected) < 1e-6
    with pytest.raises(ConversionError, match="5e-06 from PyTorch's"):
        compare_probabilities("one by one", expected[:, ::-1] + np.eye(1, 10_000) * 5e-6, expected)


def test_names_pytorch_if_its_probabilities_are_not_numbers():
    with pytest.raises(ConversionError, match="PyTorch's probabilities are not all finite"):
        compare_probabilities("one by one", np.zeros((1, 2)), np.array([[0.5, np.nan]]))
