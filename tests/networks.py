"""Networks that a user might bring to convert_to_onnx.py: small good ones, and each way to be unfit."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from conversion.trained_model import Probabilities, TrainedModel
from model import ImagePreprocessor


class Small(nn.Module):
    """Batch norm, dropout and adaptive pooling, over any size; its answers differ widely from image to image."""

    def __init__(self, channels=3, classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.pool = nn.AdaptiveAvgPool2d((2, 3))
        self.head = nn.Linear(48, classes)
        nn.init.uniform_(self.features[1].running_mean, -0.5, 0.5)
        nn.init.normal_(self.head.weight, std=0.5)

    def forward(self, x):
        x = self.head(self.pool(self.features(x)).flatten(1))
        return x + torch.randn_like(x) if self.training else x


def gray():
    return Small(channels=1)


def one_class():
    return Small(classes=1)


def ten_thousand_classes():
    return Small(classes=10_000)


def half_precision():
    return Small().half()


class Softmaxed(Small):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Sigmoided(Small):
    def forward(self, x):
        return super().forward(x).sigmoid()


def with_arguments(classes):
    return Small(classes=classes)


def not_a_network():
    return [Small()]


def failing():
    raise KeyError("no such thing")


def exiting():
    raise SystemExit("usage: train.py --data DATA")


class Pair(Small):
    def forward(self, x):
        return super().forward(x), x


class Dictionary(Small):
    def forward(self, x):
        return {"logits": super().forward(x)}


class NoClasses(Small):
    def forward(self, x):
        return super().forward(x)[:, 0]


class NoOutputs(Small):
    def forward(self, x):
        return super().forward(x)[:, :0]


class ClassIds(Small):
    def forward(self, x):
        return super().forward(x).argmax(1, keepdim=True)


class NotNumbers(Small):
    def forward(self, x):
        return super().forward(x).sub(1e9).log()


class Random(Small):
    def forward(self, x):
        return functional.dropout(super().forward(x), 0.5)  # also in evaluation mode: a common mistake


class AcrossTheBatch(Small):
    def forward(self, x):
        x = super().forward(x)
        return x - x.mean(0)


class ForBatchesOfOneAndFour(Small):
    def forward(self, x):
        return super().forward(x).reshape(4 if len(x) == 4 else 1, -1)


class Viewed(Small):
    def forward(self, x):
        x = self.pool(self.features(x.view(x.size(0), -1).view(x.shape)))
        return self.head(x.view(x.size(0), -1))


def gray_viewed():
    return Viewed(channels=1)


class Double(Small):
    def forward(self, x):
        return super().forward(x).double()


class Squeezed(Small):
    def forward(self, x):
        return super().forward(x).squeeze()


class InPlace(Small):
    def forward(self, x):
        return super().forward(x.sub_(0.5))


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.wrapped = Dictionary()

    def forward(self, x):
        return self.wrapped(x)["logits"]


class FailsAlone(Small):
    def forward(self, x):
        return super().forward(x[:1] + x[1])


class Forgetful(Small):
    def train(self, mode=True):
        super().train(mode)  # and forgets to return the network


class Autocast(Small):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class OneByOne(Small):
    def forward(self, x):
        return torch.cat([super(OneByOne, self).forward(one[None]) for one in x])


class ControlFlow(Small):
    def forward(self, x):
        x = super().forward(x)
        if x.max() > -1e9:
            return x
        return -x


class NotInOnnx(Small):
    def forward(self, x):
        return torch.linalg.svdvals(super().forward(x)[:, :, None] * x[:, :1, 0, :5])


class FailsOnOneColor(Small):
    def forward(self, x):
        if not torch.compiler.is_compiling() and (x[:, 0].flatten(1).std(1) < 0.01).any():
            raise ValueError("of one color")
        return super().forward(x)


def trained(network, size=(40, 56), mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1), crop_pct=None, **changes):
    """The network as custom_model.load returns it."""
    described = {
        "name": "tests.network",
        "network": Probabilities(network, nn.Softmax(1)).eval(),
        "weights": Path("none"),
        "digest": "sha256:0",
        "preprocessor": ImagePreprocessor(size, mean, std, crop_pct),
        "class_names": [f"class {number}" for number in range(5)],
    }
    return TrainedModel(**described | changes)


class Exits(Small):
    def forward(self, x):
        raise SystemExit


class Looping(Small):
    """A loop whose body uses tensors of the graph around it."""

    def forward(self, x):
        logits = super().forward(x)
        step = logits * 0.5
        return torch.while_loop(lambda n, y: n < 3, lambda n, y: (n + 1, y + step), (torch.tensor(0), logits))[1]
