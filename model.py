"""From a picture to its class: `ImagePreprocessor` decodes, `OnnxClassifier` runs the ONNX file.

    python -c "import model; print(model.OnnxClassifier('classifier.onnx').classify(['images/n01440764_tench.jpeg']))"

Neither needs PyTorch: the file that convert_to_onnx.py writes says everything about itself.
"""

import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import thread_time

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import STRIPOFFSETS, TILEOFFSETS, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

# The formats that people send. No other decoder of Pillow's is ever tried.
DECODERS = (JpegImageFile, PngImageFile, WebPImageFile, GifImageFile, BmpImageFile, TiffImageFile, AvifImageFile)
FORMATS = tuple(decoder.format for decoder in DECODERS)

# ImagePreprocessor has the limit, and checks it as early.
Image.MAX_IMAGE_PIXELS = None

# JPEG's own limit. Resampling needs a table in proportion to the longer side: 400 MB for a line of 25 million pixels.
MAX_SIDE = 65_535

# Scans of a progressive JPEG. Encoders write 10, or 18 of CMYK. A scan may say of 25 million pixels in 42 bytes that
# none changes, which takes 14 ms.
MAX_SCANS = 64

# Strips or tiles of a TIFF: rows of one pixel, in four planes. Pillow takes 350 bytes for each.
MAX_STRIPS = 4 * MAX_SIDE

# Seconds of one processor for reading a picture piece by piece, of which much is written in Python in Pillow. No
# picture that was not made to be slow takes more than 1.
MAX_READ_S = 3

# What EXIF says of a picture that does not lie upright, and what puts it right.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of every field that it skips, in words of the file: two lines in the log, and an entry kept for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")

# What Pillow's decoders are known to raise for a file that is damaged, or that lies about itself.
DECODE_ERRORS = (
    OSError,  # and with it UnidentifiedImageError
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# ONNX Runtime's errors have no base class of their own.
ONNX_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

Picture = bytes | str | os.PathLike | Image.Image


class InvalidImage(ValueError):
    """What was sent is not a picture that can be classified; the message says what to do about it."""


class InvalidModel(ValueError):
    """The ONNX file is missing, damaged, or not one that convert_to_onnx.py wrote."""


@dataclass(frozen=True)
class Prepared:
    """A picture at the model's size, uint8 [height, width, 3], and what it was before."""

    pixels: np.ndarray
    format: str
    width: int
    height: int


@dataclass(frozen=True)
class ImagePreprocessor:
    """Turns a picture into the pixels that a classifier takes: the reference that the ONNX graph is held to.

    `size` is (height, width) of the model's input; `mean` and `std` are per channel, in units of 0 to 1.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000

    def __call__(self, picture: Picture) -> np.ndarray:
        """Return the picture at the model's size: uint8 [size[0], size[1], 3], RGB. Raises InvalidImage."""
        return self.prepare(picture).pixels

    def prepare(self, picture: Picture) -> Prepared:
        """Return the picture at the model's size, with its own size and format. Raises InvalidImage."""
        image = self._open(picture)
        return Prepared(self.resize(self._rgb(image)), image.format or "pixels", *image.size)

    def decode(self, picture: Picture) -> np.ndarray:
        """Return the picture at its own size: uint8 [height, width, 3], RGB, upright. Raises InvalidImage."""
        return np.asarray(self._rgb(self._open(picture)))

    def resize(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        """Squash RGB pixels of any size to the model's size with Pillow's antialiased bilinear filter.

        Takes an RGB image or uint8 [height, width, 3], returns uint8 [size[0], size[1], 3].
        """
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        height, width = self.size
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Return (pixels / 255 - mean) / std: uint8 [batch, height, width, 3] to float32 [batch, 3, height, width]."""
        unit = pixels.astype(np.float32) / np.float32(255)
        normalized = (unit - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return normalized.transpose(0, 3, 1, 2)

    def _rgb(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width * height > self.max_pixels or max(width, height) > MAX_SIDE:
            raise InvalidImage(
                f"the picture has {width}x{height} pixels; at most {self.max_pixels} are taken, "
                f"and at most {MAX_SIDE} a side: send it smaller"
            )
        try:
            return to_rgb(image)
        except DECODE_ERRORS as error:
            raise InvalidImage(f"the {image.format or 'picture'} is damaged or of an unusual kind: {error}") from error

    def _open(self, picture: Picture) -> Image.Image:
        if isinstance(picture, Image.Image):
            return picture
        if not isinstance(picture, bytes):
            picture = self._read(Path(picture))
        self._check_length(len(picture))
        # The first two bytes of a JPEG, and the marker of a scan, which its data cannot contain.
        if picture.startswith(b"\xff\xd8") and picture.count(b"\xff\xda\x00") > MAX_SCANS:
            raise InvalidImage(f"the JPEG has more than {MAX_SCANS} scans: save it anew")
        try:
            return Image.open(_Patience(picture), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise InvalidImage(f"not a picture: send one of {', '.join(FORMATS)}") from error
        except DECODE_ERRORS as error:
            raise InvalidImage(f"the picture's header is damaged: {error}") from error

    def _read(self, path: Path) -> bytes:
        try:
            self._check_length(path.stat().st_size)
            return path.read_bytes()
        except (OSError, ValueError) as error:
            raise InvalidImage(f"{path} cannot be read: {error}") from error

    def _check_length(self, length: int) -> None:
        if length > self.max_bytes:
            raise InvalidImage(f"the picture has {length} bytes; at most {self.max_bytes} are taken: send it smaller")


class _Patience(io.BytesIO):
    """A picture's bytes, as long as reading them does not take more than MAX_READ_S."""

    def __init__(self, picture: bytes) -> None:
        super().__init__(picture)
        self.deadline = thread_time() + MAX_READ_S

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes. Raises OSError."""
        if thread_time() > self.deadline:
            raise OSError("reading it takes too long: save it anew")
        return super().read(size)


class _FewStrips(TiffImageFile):
    """A TIFF, unless it has more strips or tiles than MAX_STRIPS."""

    def _setup(self) -> None:
        # Later is too late: what Pillow makes of them takes 170 times the file.
        if max(len(self.tag_v2.get(tag, ())) for tag in (STRIPOFFSETS, TILEOFFSETS)) > MAX_STRIPS:
            raise OSError(f"it has more than {MAX_STRIPS} strips or tiles")
        super()._setup()


Image.register_open(TiffImageFile.format, _FewStrips, Image.OPEN[TiffImageFile.format][1])


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the first frame as RGB: upright as its EXIF says, transparency on white, 16 bits cut to the upper 8."""
    image.load()
    # Not ImageOps.exif_transpose, which writes all of the EXIF anew: that fails or takes seconds where EXIF is odd.
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if image.mode == "P" and image.palette is None:
        raise ValueError("its palette is missing")
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel have no agreed white: save it with 8 or 16")
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255, which turns nearly all of a 16-bit picture white.
    pixels = np.asarray(image)
    grey = (pixels >> 8).astype(np.uint8)
    if "transparency" in image.info:
        grey[pixels == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


@dataclass(frozen=True)
class Prediction:
    """One class and how probable it is, from 0 to 1."""

    class_id: int
    class_name: str
    probability: float


class OnnxClassifier:
    """A classifier.onnx, ready to answer. `model_name`, `class_names` and `preprocessor` come from the file."""

    def __init__(self, path: str | os.PathLike, max_pixels: int = 25_000_000) -> None:
        """Load the file at `path` on the CPU; no picture of more than `max_pixels` is taken. Raises InvalidModel."""
        if not Path(path).is_file():
            raise InvalidModel(f"{path} is not there: make it with `python convert_to_onnx.py`")
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            metadata = self.session.get_modelmeta().custom_metadata_map
            preprocessing = json.loads(metadata["preprocessing"])
            self.model_name = metadata["model"]
            self.weights_digest = metadata["weights_digest"]
            self.class_names = json.loads(metadata["class_names"])
            self.preprocessor = ImagePreprocessor(
                size=tuple(preprocessing["size"]),
                mean=tuple(preprocessing["mean"]),
                std=tuple(preprocessing["std"]),
                max_pixels=max_pixels,
            )
        except (*ONNX_ERRORS, KeyError, TypeError, ValueError) as error:
            raise InvalidModel(f"{path} is not a file that convert_to_onnx.py wrote: {error!r}") from error

    @property
    def execution_provider(self) -> str:
        """The execution provider that really runs the model."""
        return self.session.get_providers()[0]

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [batch, classes], of RGB pixels, uint8 [batch, any height, any width, 3]."""
        return self.session.run(["probabilities"], {"image": pixels})[0]

    def classify(self, pictures: Sequence[Picture], top_k: int = 5) -> list[list[Prediction]]:
        """Return each picture's `top_k` most probable classes, the most probable first. Raises InvalidImage."""
        pixels = np.stack([self.preprocessor(picture) for picture in pictures])
        return [self.top(row, top_k) for row in self.predict(pixels)]

    def top(self, probabilities: np.ndarray, top_k: int) -> list[Prediction]:
        """Return the `top_k` most probable classes of one row of probabilities; of equals, the lower id first."""
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        return [Prediction(int(i), self.class_names[i], float(probabilities[i])) for i in order]
