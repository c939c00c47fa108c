"""From an image to its class: `ImagePreprocessor` decodes and resizes, `OnnxClassifier` runs the ONNX file.

Neither needs PyTorch: the file that convert_to_onnx.py writes describes itself completely.
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from runtime.backends import open_runner
from runtime.decoding import MAX_SIDE, CpuBudget, decoding_bytes, open_image, resize, to_rgb
from runtime.errors import InvalidInput, InvalidModel
from runtime.settings import available_cpus

# A JPEG of at least LARGE_PIXELS is decoded at a reduced scale that leaves both sides at least REDUCED_SIDES times as
# long as the model's input: 12 megapixels then take 50 ms, not 140, and a probability moves by up to 0.02.
LARGE_PIXELS, REDUCED_SIDES = 4_000_000, 4
LARGE_BYTES = 32_000_000  # memory for decoding; images that need more are large and take turns

ImageSource = bytes | str | os.PathLike | Image.Image | np.ndarray


@dataclass(frozen=True)
class ImagePreprocessor:
    """Turns an image into the pixels that the ONNX file accepts, as the reference that its graph is held to.

    `size` is (height, width) of the model's input; `mean` and `std` are per channel, of pixels scaled to [0, 1]. One
    entry each means a grayscale network; its graph still accepts RGB and converts it. `interpolation` is Pillow's
    bilinear or bicubic. Without `crop_pct` an image is squashed to `size`.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float | None = None
    interpolation: str = "bilinear"
    max_image_mb: int = 400  # memory for decoding one image, in units of 1,000,000 bytes
    full_resolution: bool = True  # decode every JPEG at its own size, also a large one

    def __call__(self, source: ImageSource) -> np.ndarray:
        """Return the image, resized and cropped: uint8 [size[0], size[1], 3], RGB. Raises InvalidInput."""
        image = self.open(source)
        return np.asarray(to_rgb(image, self._scale(image), self))

    def decode(self, source: ImageSource) -> np.ndarray:
        """Return the image at its own size: uint8 [height, width, 3], RGB, upright. Raises InvalidInput."""
        return np.asarray(to_rgb(self.open(source)))

    def open(self, source: ImageSource, budget: CpuBudget | None = None) -> Image.Image:
        """Return the image, within the limits but not yet decoded. Raises InvalidInput, or OSError for a path."""
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.shape[2:] != (3,) or 0 in source.shape:
                raise InvalidInput("pixels must be uint8 [height, width, 3], RGB")
            source = Image.fromarray(source)
        elif isinstance(source, str | os.PathLike):
            source = Path(source).read_bytes()
        image = open_image(source, budget) if isinstance(source, bytes) else source
        what = f"image is {image.width}x{image.height} pixels"
        if max(image.size) > MAX_SIDE:
            raise InvalidInput(f"{what}; the limit is {MAX_SIDE} per side: resize it")
        needed_mb = decoding_bytes(image, self._scale(image)) // 1_000_000
        if needed_mb > self.max_image_mb:
            reduced_mb = decoding_bytes(image, replace(self, full_resolution=False)._scale(image)) // 1_000_000
            hint = "; PRECISION=auto would accept it" if reduced_mb <= self.max_image_mb else ""
            raise InvalidInput(f"{what} and needs {needed_mb} MB; the limit is {self.max_image_mb} MB: resize it{hint}")
        return image

    def is_large(self, image: Image.Image) -> bool:
        """Return whether decoding the opened image needs so much memory that it must wait its turn."""
        return decoding_bytes(image, self._scale(image)) > LARGE_BYTES

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """Return RGB pixels, uint8 [height, width, 3], as uint8 [size[0], size[1], 3], resized as `__call__` does."""
        if pixels.shape[:2] == self.size:  # as in the graph, but not in `__call__`, these count as cropped already
            return pixels
        return np.asarray(resize(Image.fromarray(pixels), self))

    @property
    def scaled_size(self) -> tuple[int, int]:
        """The height and width that a scaled image covers before it is cropped to `size`."""
        height, width = (math.floor(side / (self.crop_pct or 1)) for side in self.size)
        return height, width

    def fit(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size that an image of `size` is scaled to, and the left and top of the crop in the scaled image.

        Sizes are (width, height). As in torchvision and timm, the shorter side is scaled to `scaled_size`, the longer
        one in proportion to a whole number of pixels, and the center is cropped.
        """
        if self.crop_pct is None:
            return (self.size[1], self.size[0]), (0, 0)
        (width, height), (least_height, least_width) = size, self.scaled_size
        # For a square, timm uses torchvision's Resize, which truncates; otherwise its ResizeKeepRatio, which rounds.
        to_whole = math.floor if least_height == least_width else round
        scaled_width = max(least_width, to_whole(width * least_height / height))
        scaled_height = max(least_height, to_whole(height * least_width / width))
        left, top = round((scaled_width - self.size[1]) / 2), round((scaled_height - self.size[0]) / 2)
        return (scaled_width, scaled_height), (left, top)

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Return (pixels / 255 - mean) / std, float32 [batch, channels, *size], of RGB, uint8 [batch, *size, 3]."""
        if len(self.mean) == 1:  # gray: the luma
            pixels = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])[..., None]
        unit = pixels.astype(np.float32) / np.float32(255)
        return ((unit - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)).transpose(0, 3, 1, 2)

    def _scale(self, image: Image.Image) -> int:
        """Return the scale to decode at: 1, or 2, 4 or 8 for a JPEG that is decoded at a fraction of its sides."""
        if self.full_resolution or image.format != "JPEG" or image.width * image.height < LARGE_PIXELS:
            return 1
        least_side = REDUCED_SIDES * max(self.scaled_size)
        return max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(image.size) >= scale * least_side)


class OnnxClassifier:
    """A loaded classifier.onnx. `activation` made its probabilities: softmax, sigmoid or none; None if unknown."""

    def __init__(
        self, path: str | Path, provider: str = "cpu", precision: str = "f32", threads: int = 0, max_image_mb: int = 400
    ) -> None:
        """Load the file at `path`, as backends.open_runner does. Raises InvalidModel or BackendUnavailable.

        `threads` 0 means one per CPU. The defaults are exact; `precision` auto decodes large JPEGs at a reduced scale.
        """
        if not Path(path).is_file() or not os.access(path, os.R_OK):
            what = "is not a file that can be read" if Path(path).exists() else "is not there"
            advice = "make it with `python convert_to_onnx.py`, with `--model auto` if the weights are not available"
            raise InvalidModel(f"{path} {what}: {advice}")
        self.runner = open_runner(Path(path), provider, precision, threads or available_cpus())
        metadata = self.runner.metadata
        self.model_name, self.weights_digest = metadata.model, metadata.weights_digest
        self.class_names, self.activation = list(metadata.class_names), metadata.activation
        stored = msgspec.structs.asdict(metadata.preprocessing)
        self.preprocessor = ImagePreprocessor(**stored, max_image_mb=max_image_mb, full_resolution=precision == "f32")

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [batch, classes], of RGB pixels, uint8 [batch, any height, any width, 3]."""
        # ONNX Runtime's CPU provider accepts any size: the graph resizes. OpenVINO would resize without antialiasing,
        # and CUDA batches images of one size.
        if pixels.shape[1:3] != self.preprocessor.size and not self.runner.any_size:
            pixels = np.stack([self.preprocessor.resize(image) for image in pixels])
        return self.runner.run(pixels)

    def top(self, row: np.ndarray, top_k: int) -> list[dict]:
        """Return the `top_k` most probable classes in order: `class_id`, `class_name`, `probability` from 0 to 1."""
        best = np.argsort(-row, kind="stable")[:top_k].tolist()  # of equals the lower id comes first
        return [{"class_id": i, "class_name": self.class_names[i], "probability": float(row[i])} for i in best]
