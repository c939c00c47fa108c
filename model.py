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

from runtime import decoding
from runtime.backends import open_runner
from runtime.errors import InvalidInput, InvalidModel
from runtime.settings import available_cpus

# A JPEG of at least REDUCE_FROM_PIXELS is decoded at a reduced scale that leaves both sides at least REDUCED_RATIO
# times as long as those of `scaled_size`: 12 megapixels take 50 ms, not 140, and a probability moves by up to 0.02.
REDUCE_FROM_PIXELS, REDUCED_RATIO = 4_000_000, 4
LARGE_BYTES = 32_000_000  # memory for decoding; images that need more are large and take turns

ImageSource = bytes | str | os.PathLike | Image.Image | np.ndarray


@dataclass(frozen=True)
class ImagePreprocessor:
    """Prepares an image for the ONNX file, whose own preprocessing is checked against this class.

    `size` is (height, width) of the model's input; `mean` and `std` are per channel, of pixels scaled to [0, 1]. One
    entry each means a grayscale network; its graph still accepts RGB and converts it. `interpolation` is Pillow's
    bilinear or bicubic. With `crop_pct` an image is scaled to `size` / `crop_pct`, keeping its proportions, and
    center-cropped; without it, it is squashed to `size`.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float | None = None
    interpolation: str = "bilinear"
    # The server's, not the model's:
    max_image_mb: int = 400  # memory for decoding one image, in units of 1,000,000 bytes
    full_resolution: bool = True  # decode even a large JPEG at its own size; PRECISION=auto: False

    def __call__(self, source: ImageSource) -> np.ndarray:
        """Return the image, resized and cropped: uint8 [size[0], size[1], 3], RGB. Raises InvalidInput."""
        image = self.open(source)
        return np.asarray(decoding.to_rgb(image, self._scale(image), resize_for=self))

    def decode(self, source: ImageSource) -> np.ndarray:
        """Return the image at its own size: uint8 [height, width, 3], RGB, upright. Raises InvalidInput."""
        return np.asarray(decoding.to_rgb(replace(self, full_resolution=True).open(source)))

    def open(self, source: ImageSource, budget: decoding.CpuBudget | None = None) -> Image.Image:
        """Return the image, within the limits but not yet decoded. Raises InvalidInput, or OSError for a path.

        The image keeps `budget`, its CPU time for decoding; None: a new one.
        """
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.shape[2:] != (3,) or 0 in source.shape:
                raise InvalidInput("pixels must be uint8 [height, width, 3], RGB")
            source = Image.fromarray(source)
        elif isinstance(source, str | os.PathLike):
            source = Path(source).read_bytes()
        image = decoding.open_image(source, budget) if isinstance(source, bytes) else source
        what = f"image is {image.width}x{image.height} pixels"
        if max(image.size) > decoding.MAX_SIDE:
            raise InvalidInput(f"{what}; the limit is {decoding.MAX_SIDE} per side: resize it")
        needed_mb = decoding.needed_bytes(image, self._scale(image)) // 1_000_000
        if needed_mb > self.max_image_mb:
            reduced_mb = decoding.needed_bytes(image, replace(self, full_resolution=False)._scale(image)) // 1_000_000
            hint = "; PRECISION=auto would accept it" if reduced_mb <= self.max_image_mb else ""
            raise InvalidInput(f"{what} and needs {needed_mb} MB; the limit is {self.max_image_mb} MB: resize it{hint}")
        return image

    def is_large(self, image: Image.Image) -> bool:
        """Return whether decoding the opened image needs so much memory that it must wait its turn."""
        return decoding.needed_bytes(image, self._scale(image)) > LARGE_BYTES

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """Return RGB pixels, uint8 [height, width, 3], as uint8 [size[0], size[1], 3], resized as by the graph."""
        if pixels.shape[:2] == self.size:  # taken as cropped already, unlike in `__call__`
            return pixels
        return np.asarray(decoding.resize(Image.fromarray(pixels), self))

    @property
    def scaled_size(self) -> tuple[int, int]:
        """The least height and width of the scaled image, before the crop to `size`."""
        height, width = (math.floor(side / (self.crop_pct or 1)) for side in self.size)
        return height, width

    def fit(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size that an image of `size` is scaled to, and the left and top of the crop in the scaled image.

        These sizes are (width, height), unlike `self.size`. As in torchvision and timm, the shorter side is scaled to
        `scaled_size`, the longer one in proportion, to a whole pixel, and the center is cropped.
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
        """Return (pixels / 255 - mean) / std, float32 [batch, channels, *size], from RGB, uint8 [batch, *size, 3].

        Serving does not need it, because the graph normalizes; the converter and the tests compare the two.
        """
        if len(self.mean) == 1:  # gray: the luma
            pixels = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])[..., None]
        unit = pixels.astype(np.float32) / np.float32(255)
        return ((unit - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)).transpose(0, 3, 1, 2)

    def _scale(self, image: Image.Image) -> int:
        """Return what the sides are divided by in decoding: 1, or 2, 4 or 8 for a large JPEG."""
        if self.full_resolution or image.format != "JPEG" or image.width * image.height < REDUCE_FROM_PIXELS:
            return 1
        least_side = REDUCED_RATIO * max(self.scaled_size)
        return max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(image.size) >= scale * least_side)


class OnnxClassifier:
    """A loaded classifier.onnx. `activation` is its last step; "none": the network has probabilities; None: unknown."""

    def __init__(
        self, path: str | Path, provider: str = "cpu", precision: str = "f32", threads: int = 0, max_image_mb: int = 400
    ) -> None:
        """Load the file at `path` on `provider`: auto, cuda, openvino or cpu. `threads` 0 means one per CPU.

        With `precision` f32 the model computes in float32; auto is faster, and decodes large JPEGs at a reduced scale.
        These defaults are for the converter and the tests; app.py has others. Raises InvalidModel or
        BackendUnavailable.
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
        """Return probabilities, float32 [batch, classes], for RGB pixels, uint8 [batch, any height, any width, 3]."""
        # ONNX Runtime's CPU provider accepts any size: the graph resizes. OpenVINO would resize without antialiasing,
        # and CUDA batches the images of several requests, which must have one size.
        if pixels.shape[1:3] != self.preprocessor.size and not self.runner.any_size:
            pixels = np.stack([self.preprocessor.resize(image) for image in pixels])
        return self.runner.run(pixels)

    def top(self, row: np.ndarray, top_k: int) -> list[dict]:
        """Return the `top_k` most probable classes in order: `class_id`, `class_name`, `probability` from 0 to 1."""
        best = np.argsort(-row, kind="stable")[:top_k].tolist()  # ties: the lower id first
        return [{"class_id": i, "class_name": self.class_names[i], "probability": float(row[i])} for i in best]
