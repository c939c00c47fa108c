"""pytorch_model.py: the network is ResNet-18."""

import runpy

import pytest
import torch
from torch import nn
from torch.nn import functional

import pytorch_model
from pytorch_model import BasicBlock, Classifier


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


def test_the_command_prints_each_networks_parameters(capsys):
    runpy.run_path(pytorch_model.__file__, run_name="__main__")
    lines = ["resnet18: 11,689,512 parameters", "efficientnet-lite0: 4,652,008 parameters"]
    assert capsys.readouterr().out.splitlines() == lines
