"""pytorch_model.py: the network is ResNet-18, and no weights but the known ones are its own."""

import dataclasses
import hashlib

import pytest
import torch
from torch import nn
from torch.nn import functional

import pytorch_model
from conversion.weights import WeightsError
from pytorch_model import KNOWN_MODELS, BasicBlock, Classifier, load
from tests.server_process import ROOT


def torchvision_keys():
    def norm(name):
        return {f"{name}.{entry}" for entry in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}

    keys = {"conv1.weight", "fc.weight", "fc.bias"} | norm("bn1")
    for block in (f"layer{layer}.{number}" for layer in (1, 2, 3, 4) for number in (0, 1)):
        keys |= {f"{block}.conv1.weight", f"{block}.conv2.weight"} | norm(f"{block}.bn1") | norm(f"{block}.bn2")
    for shortcut in (f"layer{layer}.0.downsample" for layer in (2, 3, 4)):
        keys |= {f"{shortcut}.0.weight"} | norm(f"{shortcut}.1")
    return keys


def resnet18(state, x):
    """ResNet-18 once more, from nothing but its state dict and torch.nn.functional."""

    def norm(x, name):
        mean, variance, weight, bias = (
            state[f"{name}.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=1e-5)

    x = functional.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(functional.relu(norm(x, "bn1")), 3, stride=2, padding=1)
    for layer in (1, 2, 3, 4):
        for number in (0, 1):
            block, shortcut = f"layer{layer}.{number}", x
            stride = 2 if layer > 1 and number == 0 else 1
            y = functional.conv2d(x, state[f"{block}.conv1.weight"], stride=stride, padding=1)
            y = functional.relu(norm(y, f"{block}.bn1"))
            y = norm(functional.conv2d(y, state[f"{block}.conv2.weight"], padding=1), f"{block}.bn2")
            if stride == 2:
                shortcut = functional.conv2d(x, state[f"{block}.downsample.0.weight"], stride=2)
                shortcut = norm(shortcut, f"{block}.downsample.1")
            x = functional.relu(y + shortcut)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.fixture(scope="module")
def network():
    """A ResNet-18 whose batch norms, fresh ones being the identity, each do something."""
    torch.manual_seed(0)
    network = Classifier()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                nn.init.uniform_(values, -0.5, 0.5)
    return network.eval()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture
def unknown_weights(monkeypatch, path):
    """Weights that fit ResNet-18 and are not the known ones, standing where those should be."""
    torch.save(Classifier().state_dict(), path)
    own = dataclasses.replace(KNOWN_MODELS["resnet18"], weights_file=lambda: path, urls=())
    monkeypatch.setitem(KNOWN_MODELS, "resnet18", own)
    return path


def test_the_state_dict_has_torchvisions_keys(network):
    assert set(network.state_dict()) == torchvision_keys()
    assert len(network.state_dict()) == 122


def test_the_network_has_the_parameters_of_resnet18(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_689_512


def test_the_assignments_own_call_builds_the_same_network(network):
    assignment = Classifier(BasicBlock, [2, 2, 2, 2])
    assignment.load_state_dict(network.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(assignment.eval()(x), network(x))


@pytest.mark.parametrize("shape", [(2, 3, 224, 224), (1, 3, 65, 97)], ids=["its own size", "an odd size"])
def test_the_logits_are_those_of_an_independent_resnet18(network, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits, expected = network(x), resnet18(network.state_dict(), x)
    assert logits.shape == (shape[0], 1000)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_unknown_weights_under_the_default_name_are_refused_by_their_digest(unknown_weights):
    digest = hashlib.sha256(unknown_weights.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match=rf"weights.pth has the digest sha256:{digest}, which is not a known one"):
        load("resnet18")


def test_the_same_weights_are_taken_when_a_person_names_them(unknown_weights):
    trained = load("resnet18", weights=unknown_weights)
    assert trained.digest == f"sha256:{hashlib.sha256(unknown_weights.read_bytes()).hexdigest()}"
    assert trained.weights == unknown_weights
    assert not trained.network.training
    assert torch.equal(trained.network.fc.weight, torch.load(unknown_weights)["fc.weight"])


def test_weights_that_cannot_be_had_are_asked_of_the_person(unknown_weights):
    unknown_weights.unlink()
    with pytest.raises(WeightsError, match=r"(?s)weights.pth could not be downloaded.*--weights"):
        load("resnet18")


def test_the_model_of_the_package_loads_with_its_known_weights():
    trained = load("efficientnet-lite0")
    assert trained.digest in KNOWN_MODELS["efficientnet-lite0"].digests
    assert sum(parameter.numel() for parameter in trained.network.parameters()) == 4_652_008


def test_the_command_prints_each_networks_parameters(capsys):
    pytorch_model.main()
    lines = ["resnet18: 11,689,512 parameters", "efficientnet-lite0: 4,652,008 parameters"]
    assert capsys.readouterr().out.splitlines() == lines


def test_there_are_1000_class_names_in_imagenets_order():
    names = pytorch_model.imagenet_class_names()
    assert len(names) == 1000
    assert [names[number] for number in (0, 26, 29, 999)] == ["tench", "common newt", "axolotl", "toilet tissue"]


def test_every_class_has_its_own_wordnet_id_and_a_name():
    lines = (ROOT / "conversion" / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    assert len({line.partition(" ")[0] for line in lines}) == 1000
    assert all(pytorch_model.imagenet_class_names())
