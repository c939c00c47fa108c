"""trained_model.py: no weights but the known ones are a known model's own."""

import dataclasses
import hashlib

import pytest
import torch

from conversion import ConversionError
from conversion.trained_model import IMAGENET_CLASSES, load
from pytorch_model import KNOWN_MODELS, Classifier
from tests.server_process import ROOT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture
def unknown_weights(monkeypatch, path):
    """Weights that fit ResNet-18 and are not the known ones, standing where those should be."""
    torch.save(Classifier().state_dict(), path)
    own = dataclasses.replace(KNOWN_MODELS["resnet18"], weights=path, urls=())
    monkeypatch.setitem(KNOWN_MODELS, "resnet18", own)
    return path


def test_refuses_unknown_weights_under_the_default_name(unknown_weights):
    digest = hashlib.sha256(unknown_weights.read_bytes()).hexdigest()
    with pytest.raises(ConversionError, match=rf"weights.pth has an unknown digest, sha256:{digest}: remove it"):
        load("resnet18")


def test_accepts_the_same_weights_as_an_option(unknown_weights):
    trained = load("resnet18", weights=unknown_weights)
    assert trained.digest == f"sha256:{hashlib.sha256(unknown_weights.read_bytes()).hexdigest()}"
    assert trained.weights == unknown_weights
    assert not trained.network.training
    assert torch.equal(trained.network[0].fc.weight, torch.load(unknown_weights)["fc.weight"])


def test_a_failed_download_tells_what_to_do(unknown_weights):
    unknown_weights.unlink()
    with pytest.raises(ConversionError, match=r"(?s)weights.pth .*--weights.*--model efficientnet-lite0"):
        load("resnet18")


def test_auto_selects_resnet18_if_it_has_weights(monkeypatch, unknown_weights):
    digest = f"sha256:{hashlib.sha256(unknown_weights.read_bytes()).hexdigest()}"
    monkeypatch.setitem(KNOWN_MODELS, "resnet18", dataclasses.replace(KNOWN_MODELS["resnet18"], digests=(digest,)))
    assert load("auto").name == "resnet18"


def test_auto_falls_back_in_one_line(unknown_weights, capsys):
    unknown_weights.unlink()
    assert load("auto").name == "efficientnet-lite0"
    stderr = capsys.readouterr().err
    assert "using efficientnet-lite0 instead of resnet18: weights.pth could not be downloaded" in stderr
    assert stderr.count("\n") == 1


def test_loads_the_packaged_model_with_its_weights():
    trained = load("efficientnet-lite0")
    assert trained.digest in KNOWN_MODELS["efficientnet-lite0"].digests
    assert sum(parameter.numel() for parameter in trained.network.parameters()) == 4_652_008


def test_there_are_1000_class_names_in_imagenets_order():
    assert len(IMAGENET_CLASSES) == 1000
    assert [IMAGENET_CLASSES[number] for number in (0, 26, 29)] == ["tench", "common newt", "axolotl"]
    assert IMAGENET_CLASSES[999] == "toilet tissue"


def test_every_class_has_its_own_wordnet_id_and_a_name():
    lines = (ROOT / "conversion" / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    assert len({line.partition(" ")[0] for line in lines}) == 1000
    assert all(IMAGENET_CLASSES)
