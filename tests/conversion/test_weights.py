"""weights.py: weights get into a network only if every key fits, and no code of the file's is run."""

import argparse
import os
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from conversion import ConversionError
from conversion.weights import load_weights


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def parallel(network):
    return {f"module.{key}": value for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param(lambda network: network.state_dict(), id="a state dict"),
        pytest.param(lambda network: {"epoch": 3, "state_dict": network.state_dict()}, id="under state_dict"),
        pytest.param(lambda network: {"model": network.state_dict(), "best": 0.9}, id="under model"),
        pytest.param(lambda network: {"model_state_dict": network.state_dict()}, id="under model_state_dict"),
        pytest.param(parallel, id="of DataParallel"),
        pytest.param(lambda network: {"state_dict": parallel(network)}, id="of DataParallel, under state_dict"),
        pytest.param(lambda network: nn.ModuleDict({"_orig_mod": network}).state_dict(), id="of torch.compile"),
        pytest.param(lambda network: nn.ModuleDict({"model": network}).state_dict(), id="of Lightning"),
        pytest.param(lambda network: network.half().state_dict(), id="in half precision"),
    ],
)
def test_a_state_dict_is_found_in_a_checkpoint(path, checkpoint):
    network, filled = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(checkpoint(network), path)
    load_weights(filled, path)
    assert filled.weight.dtype == torch.float32
    assert torch.equal(filled.weight, network.weight.float())
    assert torch.equal(filled.bias, network.bias.float())


def test_safetensors_are_taken(tmp_path):
    network, filled = nn.Linear(3, 2), nn.Linear(3, 2)
    save_file(parallel(network), tmp_path / "weights.safetensors")
    load_weights(filled, tmp_path / "weights.safetensors")
    assert torch.equal(filled.weight, network.weight)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08" + bytes(7) + b"{}      garbage"])
def test_damaged_safetensors_are_refused(tmp_path, content):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(ConversionError, match=r"weights.safetensors is damaged, or not a state dict|Missing key"):
        load_weights(nn.Linear(3, 2), tmp_path / "weights.safetensors")


def test_a_prefix_that_is_the_networks_own_stays(path):
    network = nn.ModuleDict({"model": nn.Linear(3, 2)})
    torch.save(network.state_dict(), path)
    filled = nn.ModuleDict({"model": nn.Linear(3, 2)})
    load_weights(filled, path)
    assert torch.equal(filled["model"].weight, network["model"].weight)


def test_a_prefix_that_only_some_keys_have_is_refused(path):
    torch.save(parallel(nn.Linear(3, 2)) | {"loss.weight": torch.zeros(2)}, path)
    with pytest.raises(ConversionError, match=r'(?s)Missing key.*"weight".*Unexpected key.*"module.weight"'):
        load_weights(nn.Linear(3, 2), path)


def test_what_does_not_fit_is_told_briefly(path):
    torch.save(nn.Sequential(*(nn.Linear(3, 2) for _ in range(300))).state_dict(), path)
    with pytest.raises(ConversionError) as refused:
        load_weights(nn.Sequential(*(nn.Linear(2, 3) for _ in range(500))), path)
    assert "size mismatch for 0.weight" in str(refused.value)
    assert len(str(refused.value)) < 1500


def test_a_file_with_other_objects_in_it_says_which(path):
    torch.save({"state_dict": nn.Linear(3, 2).state_dict(), "arguments": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(ConversionError, match=r"holds argparse.Namespace, .* save the network's state_dict\(\) alone"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda state: state.pop("bias"), r'Missing key.*"bias"', id="a missing key"),
        pytest.param(lambda state: state.update(more=torch.zeros(1)), r'Unexpected key.*"more"', id="an extra key"),
        pytest.param(lambda state: state.update(bias=torch.zeros(5)), "size mismatch for bias", id="a wrong shape"),
        pytest.param(lambda state: state.update(bias="zero"), '"bias", expected torch.Tensor', id="not a tensor"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(path, change, message):
    state = dict(nn.Linear(3, 2).state_dict())
    change(state)
    torch.save(state, path)
    with pytest.raises(ConversionError, match=f"(?s)weights.pth does not fit the network.*{message}"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize("thing", [None, 3, [1], torch.zeros(2), {1: 2}], ids=lambda thing: type(thing).__name__)
def test_a_file_of_something_else_than_a_state_dict_is_refused(path, thing):
    torch.save(thing, path)
    with pytest.raises(ConversionError, match=r"weights.pth does not fit the network"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04", id="a bare zip header"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", id="a Git LFS pointer"),
        # Each of these is a pickle's opcodes too, and gets as far into torch.load as another kind of error.
        pytest.param(b"hello", id="text"),
        pytest.param(b"abc", id="other text"),
        pytest.param(b"J", id="a letter"),
        pytest.param(random.Random(0).randbytes(4000), id="random bytes"),
    ],
)
def test_a_file_that_is_not_torchs_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"weights.pth is damaged, or not a state dict"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "old format"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(path, zipped, part):
    torch.save(nn.Linear(300, 200).state_dict(), path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(ConversionError, match=r"weights.pth is damaged, or not a state dict"):
        load_weights(nn.Linear(300, 200), path)


def test_a_web_page_instead_of_weights_is_refused(path):
    path.write_text("\n<!DOCTYPE html><title>Dropbox</title>")
    with pytest.raises(ConversionError, match=r"weights.pth is a web page, not weights"):
        load_weights(nn.Linear(3, 2), path)


def test_an_absent_file_is_refused(path):
    with pytest.raises(ConversionError, match=r"weights.pth is not there"):
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
