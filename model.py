"""From an image to its class: `ImagePreprocessor` decodes, `OnnxClassifier` runs the ONNX file.

Neither needs PyTorch: the file that convert_to_onnx.py writes says everything about itself.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from runtime.decoding import MAX_SIDE, open_image, takes_little_memory, to_rgb
from runtime.errors import InvalidInput, InvalidModel
from runtime.providers import open_runner
from runtime.settings import available_cpus

# An image of so many pixels is large. A large JPEG may be decoded at a reduced scale: in 50 ms, not 140, of 12 million.
# The sides left, in units of the model's: with 2 a photograph's probability moved by up to 0.06, with 4 by 0.02.
LARGE_PIXELS = 4_000_000
REDUCED_SIDES = 4

ImageSource = bytes | str | os.PathLike | Image.Image | np.ndarray


@dataclass(frozen=True)
class ImagePreprocessor:
    """Turns an image into the pixels that a classifier takes: the reference that the ONNX graph is held to.

    `size` is (height, width) of the model's input; `mean` and `std` are per channel, in units of 0 to 1. With one
    entry each the network takes grey, of which the graph's input knows nothing: it is RGB for every model.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    max_pixels: int = 25_000_000
    exact: bool = True  # decode every JPEG at its own size, not a large one at a reduced one

    def __call__(self, source: ImageSource) -> np.ndarray:
        """Return the image at the model's size: uint8 [size[0], size[1], 3], RGB. Raises InvalidInput.

        The pixels are those of `resize`, which makes an image as narrow as the model's input first, and then as high.
        """
        image = self.open(source)
        rgb = to_rgb(image, self._least_side(image), width=self.size[1])
        return np.asarray(rgb.resize(self.size[::-1], Image.Resampling.BILINEAR))

    def decode(self, source: ImageSource) -> np.ndarray:
        """Return the image at its own size: uint8 [height, width, 3], RGB, upright. Raises InvalidInput."""
        return np.asarray(to_rgb(self.open(source)))

    def open(self, source: ImageSource, deadline: float | None = None) -> Image.Image:
        """Return the image, within the limits and not yet decoded, as decoding.open_image does.

        Raises InvalidInput, or OSError where a path cannot be read.
        """
        if isinstance(source, Image.Image):
            image = source
        elif isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.shape[2:] != (3,) or 0 in source.shape:
                raise InvalidInput("pixels have to be uint8 [height, width, 3], RGB")
            image = Image.fromarray(source)
        else:
            image = open_image(source if isinstance(source, bytes) else Path(source).read_bytes(), deadline)
        width, height = image.size
        if width * height > self.max_pixels or max(width, height) > MAX_SIDE:
            raise InvalidInput(
                f"the picture has {width}x{height} pixels; at most {self.max_pixels} are taken, "
                f"and at most {MAX_SIDE} a side: send it smaller"
            )
        return image

    def is_large(self, image: Image.Image) -> bool:
        """Return whether decoding the image takes much memory, of RGBA in WebP 20 bytes a pixel."""
        return image.width * image.height >= LARGE_PIXELS and not takes_little_memory(image, self._least_side(image))

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """Squash RGB pixels of any size to the model's size with Pillow's antialiased bilinear filter.

        Takes uint8 [height, width, 3], returns uint8 [size[0], size[1], 3].
        """
        return np.asarray(Image.fromarray(pixels).resize(self.size[::-1], Image.Resampling.BILINEAR))

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Return (pixels / 255 - mean) / std, of RGB or of its luma where `mean` has one entry.

        Takes uint8 [batch, height, width, 3], returns float32 [batch, channels, height, width].
        """
        if len(self.mean) == 1:
            pixels = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])[..., None]
        unit = pixels.astype(np.float32) / np.float32(255)
        normalized = (unit - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return normalized.transpose(0, 3, 1, 2)

    def _least_side(self, image: Image.Image) -> int:
        """Return how many pixels a side a JPEG has to keep when it is decoded; 0: all."""
        return 0 if self.exact or image.width * image.height < LARGE_PIXELS else REDUCED_SIDES * max(self.size)


class OnnxClassifier:
    """A classifier.onnx, ready to answer. `model_name`, `class_names` and `preprocessor` come from the file.

    So does `activation`, what made probabilities: softmax, sigmoid or none; None in a file that does not say.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        provider: str = "cpu",
        precision: str = "f32",
        threads: int | None = None,
        max_pixels: int = 25_000_000,
    ) -> None:
        """Load the file at `path`, as providers.open_runner does, on `threads` threads: by default one for each CPU.

        With `precision` f32 images are decoded exactly, too. None of more than `max_pixels` is taken.
        Raises InvalidModel or ProviderUnavailable.
        """
        if not Path(path).is_file() or not os.access(path, os.R_OK):
            what = "is no file that can be read" if Path(path).exists() else "is not there"
            raise InvalidModel(
                f"{path} {what}: make it with `python convert_to_onnx.py`, "
                "or with `python convert_to_onnx.py --model auto` if the assignment's weights cannot be had"
            )
        self.runner = open_runner(Path(path), provider, precision, threads or available_cpus())
        described = self.runner.metadata
        self.model_name = described.model
        self.weights_digest = described.weights_digest
        self.class_names = list(described.class_names)
        self.activation = described.activation
        expected = described.preprocessing
        exact = precision == "f32"
        self.preprocessor = ImagePreprocessor(expected.size, expected.mean, expected.std, max_pixels, exact)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [batch, classes], of RGB pixels, uint8 [batch, any height, any width, 3]."""
        if pixels.shape[1:3] != self.preprocessor.size and not self.runner.any_size:
            pixels = np.stack([self.preprocessor.resize(image) for image in pixels])
        return self.runner.run(pixels)

    def top(self, row: np.ndarray, top_k: int) -> list[dict]:
        """Return the `top_k` most probable classes of one row of probabilities, the most probable first.

        Each is its `class_id`, `class_name` and `probability`, from 0 to 1. Of equals the lower id comes first.
        """
        best = np.argsort(-row, kind="stable")[:top_k].tolist()
        return [{"class_id": i, "class_name": self.class_names[i], "probability": float(row[i])} for i in best]
