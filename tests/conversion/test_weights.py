"""weights.py: weights get into a network only if every key fits, and no code of the file's is run."""

import argparse
import os
import pickle
import random
import re
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from conversion import ConversionError
from conversion.weights import load_weights


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def prefixed(network, prefix="module."):
    return {f"{prefix}{key}": value for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param(lambda network: network.state_dict(), id="state dict"),
        pytest.param(lambda network: {"epoch": 3, "state_dict": network.state_dict()}, id="state_dict"),
        pytest.param(lambda network: {"params_ema": network.state_dict(), "best": 0.9}, id="params_ema"),
        pytest.param(lambda network: {"net": {"weights": network.state_dict()}}, id="nested"),
        pytest.param(prefixed, id="DataParallel"),
        pytest.param(lambda network: {"state_dict": prefixed(network)}, id="DataParallel under state_dict"),
        pytest.param(lambda network: prefixed(network, "backbone."), id="any prefix"),
        pytest.param(lambda network: prefixed(network, "_orig_mod.module."), id="two prefixes"),
        pytest.param(lambda network: network.half().state_dict(), id="half precision"),
        pytest.param(lambda network: prefixed(network) | {"n_averaged": torch.tensor(3)}, id="of an averaged model"),
        pytest.param(
            lambda network: {"model": network.state_dict(), "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 3)}}}},
            id="with an optimizer",
        ),
    ],
)
def test_finds_the_state_dict_in_a_checkpoint(path, checkpoint):
    network, filled = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(checkpoint(network), path)
    load_weights(filled, path)
    assert filled.weight.dtype == torch.float32
    assert torch.equal(filled.weight, network.weight.float())
    assert torch.equal(filled.bias, network.bias.float())


def test_loads_the_weights_of_a_wrapped_network(path):
    network = nn.ModuleDict({"layer1": nn.Linear(3, 2), "layer2": nn.Linear(2, 2)})
    torch.save(prefixed(network, "backbone."), path)
    filled = nn.ModuleDict({"wrapped": nn.ModuleDict({"layer1": nn.Linear(3, 2), "layer2": nn.Linear(2, 2)})})
    load_weights(filled, path)
    assert torch.equal(filled["wrapped"]["layer2"].weight, network["layer2"].weight)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_loads_into_a_network_of_lazy_layers(path):
    network, filled = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.LazyLinear(2))
    torch.save(network.state_dict(), path)
    load_weights(filled, path)
    assert torch.equal(filled[0].weight, network[0].weight)


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pth"])
def test_recognizes_safetensors_by_their_content(tmp_path, suffix):
    network, filled = nn.Linear(3, 2), nn.Linear(3, 2)
    save_file(prefixed(network), tmp_path / f"weights.{suffix}")
    load_weights(filled, tmp_path / f"weights.{suffix}")
    assert torch.equal(filled.weight, network.weight)


TWO_SETS = {
    "beside each other": lambda one, other: {"model": one.state_dict(), "model_ema": other.state_dict(), "epoch": 3},
    "nested": lambda one, other: {"model": {"module": one.state_dict()}, "model_ema": {"module": other.state_dict()}},
    "in one state dict": lambda one, other: prefixed(one, "model.") | prefixed(other, "model_ema."),
}


@pytest.mark.parametrize("build", TWO_SETS.values(), ids=TWO_SETS)
def test_refuses_to_choose_between_two_sets(path, build):
    torch.save(build(nn.Linear(3, 2), nn.Linear(3, 2)), path)
    with pytest.raises(ConversionError, match=r"2 sets .*--weights-key model(.module)? or model_ema"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize("build", TWO_SETS.values(), ids=TWO_SETS)
@pytest.mark.parametrize(("key", "chosen"), [("model", 0), ("model_ema", 1)])
def test_loads_the_set_named_by_the_key(path, build, key, chosen):
    networks, filled = [nn.Linear(3, 2), nn.Linear(3, 2)], nn.Linear(3, 2)
    torch.save(build(*networks), path)
    load_weights(filled, path, key)
    assert torch.equal(filled.weight, networks[chosen].weight)


@pytest.mark.parametrize("order", [["student", "teacher"], ["teacher", "student"]])
def test_of_two_sets_loads_the_only_one_that_fits(path, order):
    student, filled = nn.Linear(3, 2), nn.Linear(3, 2)
    sets = {"student": student.state_dict(), "teacher": {"weight": torch.ones(2, 3), "bias": torch.ones(9)}}
    torch.save({name: sets[name] for name in order}, path)
    load_weights(filled, path)
    assert torch.equal(filled.weight, student.weight)


@pytest.mark.parametrize("key", ["mode", "ema"])
def test_refuses_a_key_without_weights(path, key):
    torch.save({"model": nn.Linear(3, 2).state_dict()}, path)
    with pytest.raises(ConversionError, match=r"model\.weight, model\.bias"):
        load_weights(nn.Linear(3, 2), path, key)


def test_keeps_a_prefix_that_is_the_networks_own(path):
    network = nn.ModuleDict({"model": nn.Linear(3, 2)})
    torch.save(network.state_dict() | {"head.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2)}, path)
    filled = nn.ModuleDict({"model": nn.Linear(3, 2)})
    load_weights(filled, path)
    assert torch.equal(filled["model"].weight, network["model"].weight)


@pytest.mark.parametrize(
    "stray",
    [
        pytest.param({"criterion.weight": torch.ones(9)}, id="of a loss function"),
        pytest.param({"0.total_ops": torch.zeros(1, dtype=torch.float64)}, id="a number in a layer"),
        pytest.param({"1.index": torch.zeros(9, dtype=torch.int64)}, id="integers in a layer"),
    ],
)
def test_prints_the_names_of_stray_tensors(path, capsys, stray):
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    torch.save(network.state_dict() | stray, path)
    load_weights(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), path)
    assert capsys.readouterr().out.endswith(f"such tensors: {next(iter(stray))}\n")


@pytest.mark.parametrize("name", ["layers.1.weight", "layers.0.more"])
def test_refuses_weights_of_a_deeper_network(path, name):
    network = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(3, 2))})
    torch.save(network.state_dict() | {name: torch.ones(2)}, path)
    with pytest.raises(ConversionError, match=f'Unexpected .*"{name}"'):
        load_weights(network, path)


def test_loads_batch_norm_without_its_counter(path):
    network, filled = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    state = network.train()(torch.randn(9, 3)) is not None and network.state_dict()
    del state["num_batches_tracked"]
    torch.save(state, path)
    load_weights(filled, path)
    assert torch.equal(filled.running_mean, network.running_mean)


def test_a_misfit_is_described_briefly(path):
    torch.save(nn.Sequential(*(nn.Linear(3, 2) for _ in range(300))).state_dict(), path)
    with pytest.raises(ConversionError) as refused:
        load_weights(nn.Sequential(*(nn.Linear(2, 3) for _ in range(500))), path)
    assert re.search(r'Missing key.*: "300.weight", "300.bias", .* …; size mismatch for 0.weight', str(refused.value))
    assert len(str(refused.value)) < 1500


@pytest.mark.parametrize("network", [nn.Identity(), nn.Linear(3, 2)])
def test_refuses_a_file_without_a_name_of_the_network(path, network):
    torch.save({"conv.gamma": torch.zeros(3)}, path)
    with pytest.raises(ConversionError, match=r"no name .*: conv.gamma"):
        load_weights(network, path)


def test_names_an_object_that_is_not_a_tensor(path):
    torch.save({"state_dict": nn.Linear(3, 2).state_dict(), "arguments": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(ConversionError, match=r"holds argparse.Namespace, .* save the network's state_dict\(\) alone"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda state: state.pop("bias"), 'Missing .*"bias"', id="a missing name"),
        pytest.param(lambda state: state.update(bias=torch.zeros(5)), "mismatch for bias: .*5", id="another shape"),
        pytest.param(lambda state: state.update(bias="zero"), 'Missing .*"bias"', id="not a tensor"),
    ],
)
def test_refuses_a_state_dict_that_does_not_fit(path, change, message):
    state = dict(nn.Linear(3, 2).state_dict())
    change(state)
    torch.save(state, path)
    with pytest.raises(ConversionError, match=f"weights.pth does not fit the network.*{message}"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize("error", [KeyError("epoch"), RuntimeError("it needs an epoch"), ValueError("epoch\nis 1")])
def test_reports_why_a_network_refuses_its_weights(path, error):
    network = nn.Linear(3, 2)
    torch.save(network.state_dict(), path)
    network.register_load_state_dict_pre_hook(Mock(side_effect=error))
    with pytest.raises(ConversionError, match=r"does not fit the network: .*epoch"):
        load_weights(network, path)


def test_loads_strictly_whatever_the_network_does(path):
    class Lenient(nn.Linear):
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict, strict=False)

    torch.save({"weight": torch.zeros(2, 3)}, path)
    with pytest.raises(ConversionError, match=r'Missing .*"bias"'):
        load_weights(Lenient(3, 2), path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_refuses_a_deeper_network_for_one_that_wraps_its_layers(path, prefix):
    deeper = nn.ModuleDict({"layers": nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))})
    torch.save(prefixed(deeper, prefix), path)
    shallow = nn.ModuleDict({"layers": nn.Sequential(*(nn.Linear(2, 2) for _ in range(2)))})
    for network in (shallow, nn.ModuleDict({"model": shallow})):
        with pytest.raises(ConversionError, match=r"Unexpected .*layers\.2\.weight"):
            load_weights(network, path)


def test_names_occur_within_names(path):
    def network(classes):
        parts = {"conv": nn.Linear(2, 2), "blocks": nn.ModuleList([nn.ModuleDict({"conv": nn.Linear(2, 2)})])}
        return nn.ModuleDict(parts | {"fc": nn.Linear(2, classes)})

    torch.save({"net": network(3).state_dict()}, path)
    load_weights(network(3), path)
    with pytest.raises(ConversionError, match=r"network: size mismatch for fc.weight"):
        load_weights(network(4), path)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_another_set_of_weights_does_not_shape_lazy_layers(path):
    network, filled = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.LazyLinear(2))
    torch.save({"auxiliary.0.weight": torch.zeros(9, 9)} | prefixed(network, ""), path)
    load_weights(filled, path)
    assert torch.equal(filled[0].weight, network[0].weight)


def test_names_what_is_there_instead_of_what_is_missing(path):
    torch.save({"weight": torch.zeros(2, 3), "offset": torch.zeros(2)}, path)
    with pytest.raises(ConversionError, match=r'Missing .*"bias".*Unexpected .*"offset"'):
        load_weights(nn.Linear(3, 2), path)


def test_names_a_key_that_is_not_there(path):
    torch.save({"model": nn.Linear(3, 2).state_dict()}, path)
    with pytest.raises(ConversionError, match=r"form ema.*weight: model\.weight"):
        load_weights(nn.Linear(3, 2), path, "ema")


@pytest.mark.parametrize("thing", [None, 3, [torch.zeros(2)], torch.zeros(2), {1: 2}], ids=lambda it: type(it).__name__)
def test_refuses_anything_but_a_state_dict(path, thing):
    torch.save(thing, path)
    with pytest.raises(ConversionError, match=r"weights.pth does not fit the network"):
        load_weights(nn.Linear(3, 2), path)


def test_refuses_a_dictionary_that_holds_itself(path):
    endless = {}
    endless["model"] = endless
    torch.save(endless, path)
    with pytest.raises(ConversionError):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04", id="a bare zip header"),
        pytest.param(b"\x08" + bytes(7) + b"{}      garbage", id="damaged safetensors"),
        # Each of these is a pickle's opcodes too, and gets as far into torch.load as another kind of error.
        pytest.param(b"hello", id="text"),
        pytest.param(b"abc", id="other text"),
        pytest.param(b"J", id="a letter"),
        pytest.param(random.Random(0).randbytes(4000), id="random bytes"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_refuses_a_file_that_pytorch_did_not_write(tmp_path, content, suffix):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"is damaged|no name in it"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "old format"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(path, zipped, part):
    torch.save(nn.Linear(300, 200).state_dict(), path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(ConversionError, match=r"weights.pth is damaged"):
        load_weights(nn.Linear(300, 200), path)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("\n<!DOCTYPE html><title>Dropbox</title>", "web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ('{"metadata": {}, "weight_map": {}}', "index"),
    ],
)
def test_names_a_file_that_is_not_weights(path, content, name):
    path.write_text(content)
    with pytest.raises(ConversionError, match=name):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_names_a_torchscript_archive(path):
    torch.jit.script(nn.Linear(3, 2)).save(path)
    with pytest.raises(ConversionError, match="TorchScript"):
        load_weights(nn.Linear(3, 2), path)


def test_refuses_a_path_without_a_file(path):
    with pytest.raises(ConversionError, match=r"weights.pth is not a file that exists"):
        load_weights(nn.Linear(3, 2), path)
    with pytest.raises(ConversionError, match="is a folder"):
        load_weights(nn.Linear(3, 2), path.parent)
    os.mkfifo(path)  # reading it would never end
    with pytest.raises(ConversionError, match="is not a file"):
        load_weights(nn.Linear(3, 2), path)


class Malicious:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize(
    "save",
    [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2))],
    ids=["torch.save", "pickle.dump"],
)
def test_a_pickle_that_runs_code_is_refused_and_not_run(path, tmp_path, save):
    save({"weight": Malicious(tmp_path / "made")}, path)
    with pytest.raises(ConversionError):
        load_weights(nn.Linear(3, 2), path)
    assert not (tmp_path / "made").exists()
