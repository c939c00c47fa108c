"""Edits of a right ONNX file: to one of other classes, and in each way in which one can be wrong."""

import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.server_process import MODEL_PATH


def swap_channels(graph):
    graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    position, cast = next((i, node) for i, node in enumerate(graph.node) if "preprocessing/resized" in node.input)
    cast.input[0] = "swapped"
    graph.node.insert(position, helper.make_node("Gather", ["preprocessing/resized", "bgr"], ["swapped"], axis=3))


def drop_antialias(graph):
    branches = next(node for node in graph.node if node.op_type == "If").attribute
    resize = next(node for branch in branches for node in branch.g.node if node.op_type == "Resize")
    for attribute in resize.attribute:
        if attribute.name in ("antialias", "exclude_outside"):  # ONNX Runtime refuses the second without the first
            attribute.i = 0


def swap_mean_and_std(graph):
    mean, std = (entry for entry in graph.initializer if entry.name in ("preprocessing/mean", "preprocessing/std"))
    mean.name, std.name = std.name, mean.name


def forget_normalization(graph):
    for entry in graph.initializer:
        if entry.name in ("preprocessing/mean", "preprocessing/std"):
            value = float(entry.name.endswith("std"))
            entry.CopyFrom(numpy_helper.from_array(np.full(3, value, np.float32), entry.name))


def forget_softmax(graph):
    softmax = graph.node.pop()
    graph.node[-1].output[0] = softmax.output[0]


BROKEN = [swap_channels, drop_antialias, swap_mean_and_std, forget_normalization, forget_softmax]


def broken_copy(good, break_it):
    graph = onnx.ModelProto()
    graph.CopyFrom(good)
    break_it(graph.graph)
    onnx.checker.check_model(graph)
    return graph


def of_other_classes(path, class_ids, activation, described=None):
    """Write a right file whose classes are these of ImageNet's, as another classifier might have them.

    `described` is what the file says of its activation, by default the truth.
    """
    model = onnx.load(MODEL_PATH)
    softmax = model.graph.node.pop()
    model.graph.initializer.append(numpy_helper.from_array(np.array(class_ids), "class_ids"))
    model.graph.node.append(helper.make_node("Gather", [softmax.input[0], "class_ids"], ["logits"], axis=1))
    model.graph.node.append(helper.make_node(activation, ["logits"], softmax.output))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(class_ids)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata["class_names"] = json.dumps([f"kind {class_id}" for class_id in class_ids])
    metadata["activation"] = described or activation.lower()
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path
