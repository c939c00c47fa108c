"""torchvision as an independent oracle: its resnet18 for the network, its transforms for the preprocessing."""

import numpy as np
import pytest
import torch
from PIL import Image

from model import ImagePreprocessor
from pytorch_model import Classifier
from runtime.settings import ROOT

try:
    from torchvision.models import resnet18
    from torchvision.transforms import v2
except (ImportError, RuntimeError) as error:  # RuntimeError: its build is for GPUs, and that of torch is not
    pytest.skip(f"torchvision cannot be imported: {error}", allow_module_level=True)


def test_the_network_is_torchvisions():
    torch.manual_seed(0)
    ours, theirs = Classifier().eval(), resnet18().eval()
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict(), strict=True)
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        logits, expected = ours(pixels), theirs(pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("image", sorted((ROOT / "images").glob("*.jpeg")), ids=lambda path: path.name)
def test_the_preprocessing_is_torchvisions(image):
    preprocessor = ImagePreprocessor()
    transform = v2.Compose(
        [
            v2.Resize(preprocessor.size, v2.InterpolationMode.BILINEAR, antialias=True),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocessor.mean, preprocessor.std),
        ]
    )
    with Image.open(image) as opened:
        expected = transform(opened.convert("RGB")).numpy()
    (actual,) = preprocessor.normalize(preprocessor(image)[None])
    np.testing.assert_allclose(actual, expected, atol=1e-5)
