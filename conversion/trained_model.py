"""A network with its weights: a known model, loaded from its own weights or from others."""

import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import nn

from conversion import ConversionError
from conversion.files import digests, download
from conversion.weights import load_weights
from model import ImagePreprocessor
from pytorch_model import KNOWN_MODELS, PHOTOS, PHOTOS_URL, KnownModel
from runtime.metadata import Preprocessing
from runtime.settings import ROOT

ACTIVATIONS = {"softmax": nn.Softmax(1), "sigmoid": nn.Sigmoid(), "none": nn.Identity()}
IMAGENET = Path(__file__).with_name("imagenet_classes.txt")  # line n + 1 is class n, as `<WordNet id> <name>`
IMAGENET_CLASSES = [line.partition(" ")[2] for line in IMAGENET.read_text(encoding="utf-8").splitlines()]


class Probabilities(nn.Sequential):
    """A network and its activation: pixels to probabilities, float32 [batch, classes]. One output becomes two."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        network, activation = self
        probabilities = activation(network(pixels).float())
        return torch.cat([1 - probabilities, probabilities], 1) if probabilities.shape[1] == 1 else probabilities


@dataclass(frozen=True)
class TrainedModel:
    """A network with its weights, in evaluation mode, and everything that its ONNX file describes."""

    name: str
    network: nn.Module  # normalized pixels in, probabilities out
    weights: Path
    digest: str  # of the weights' file, as `sha256:…`
    preprocessor: ImagePreprocessor
    class_names: list[str]  # entry n names class n
    activation: str = "softmax"  # one of ACTIVATIONS, the network's last step

    @property
    def preprocessing_metadata(self) -> Preprocessing:
        """What the file describes of the preprocessor. Raises msgspec.ValidationError if that is out of range."""
        return msgspec.convert(self.preprocessor, Preprocessing, from_attributes=True)


def load(name: str, weights: Path | None = None, weights_key: str | None = None) -> TrainedModel:
    """Build the known model `name` with its own weights, downloaded if necessary, or with those in the file `weights`.

    Its own weights must have a known digest; `weights` only need to fit. The name `auto` means resnet18 if its own are
    available, otherwise efficientnet-lite0, with a warning. Raises ConversionError.
    """
    if name == "auto":
        name = "resnet18"
        try:
            known_weights(KNOWN_MODELS[name])
        except ConversionError as error:
            name = "efficientnet-lite0"
            print(f"using {name} instead of resnet18: {str(error).splitlines()[0]}", file=sys.stderr)
    known = KNOWN_MODELS[name]
    path = weights or known_weights(known)
    network = Probabilities(known.build(), ACTIVATIONS["softmax"]).eval()
    load_weights(network[0], path, weights_key)
    return TrainedModel(name, network, path, digests(path.read_bytes())[0], known.preprocessor, IMAGENET_CLASSES)


def known_weights(known: KnownModel) -> Path:
    """Return the path of the model's weights, downloaded with the photographs if missing. Raises ConversionError."""
    if not known.weights.is_file():
        download(known.urls, known.weights, known.digests)
        try:
            for name, digest in PHOTOS.items():
                download([f"{PHOTOS_URL}/{name}"], ROOT / "images" / "photos" / name, [digest])
        except (ConversionError, OSError) as error:
            print(f"the preset tests use illustrations: {str(error).splitlines()[0]}", file=sys.stderr)
    elif set(known.digests).isdisjoint(actual := digests(known.weights.read_bytes())):
        raise ConversionError(f"{known.weights} has an unknown digest, {actual[0]}: remove it, or give it as --weights")
    return known.weights
