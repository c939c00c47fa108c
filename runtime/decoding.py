"""Decoding untrusted image files to RGB: memory is estimated from the header, and CPU time is limited."""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from time import thread_time
from typing import Any

import numpy as np
from PIL import Image, ImageChops
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from runtime import webp
from runtime.errors import InvalidInput, Unavailable
from runtime.image_formats import FORMATS, recognize
from runtime.stripping import END, Stripped, exif_orientation, strip_jpeg, strip_png

# JPEG's own limit. Resampling needs a table proportional to the longer side: 400 MB for a line of 25 million pixels.
MAX_SIDE = 65_535

MAX_CPU_S = 2.0  # a single image takes more than 1 s only if it was crafted to
STRIP_PIXELS = 1_000_000  # converted to RGB at a time
ROW_BYTES = 1_000  # memory per row of an image that is as narrow as a model's input

TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
UPRIGHT = {number: Image.Transpose[name] for number, name in enumerate(TURNS, start=2)}  # by the orientation in EXIF

# Pillow warns about every field that it skips, and quotes the file: in the log, and in a registry that only grows.
warnings.filterwarnings("ignore", module=r"PIL\.")


class CpuBudget:
    """MAX_CPU_S from now, of this thread's CPU time and of the processes that decode for it."""

    def __init__(self) -> None:
        self._end = thread_time() + MAX_CPU_S

    def spend(self, seconds: float = 0.0) -> float:
        """Count `seconds` that a process has used; return those that are left. Raises InvalidInput if none are."""
        self._end -= seconds
        left = self._end - thread_time()
        if left < 0:
            raise InvalidInput(f"decoding takes over {MAX_CPU_S:g} s: send fewer or smaller images")
        return left


def open_image(data: bytes, budget: CpuBudget | None = None) -> Image.Image:
    """Open an image file; only its header is read. Raises InvalidInput.

    Without `budget` the image has its own. Its `info` has the memory that decoding needs at any scale (`fixed_bytes`),
    whether a JPEG `is_complete`, and whether a WebP must be decoded `in_subprocess`.
    """
    name = recognize(data)
    with _explaining(name):
        if name == "WEBP" and len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
            raise EOFError  # reported as incomplete
        file = {"JPEG": strip_jpeg, "PNG": strip_png}.get(name, Stripped)(data)
        # Image.open would drop the decoder's reason for refusing a file.
        image = DECODERS[name](_TimedBytes(file.data, budget))
        image.info.setdefault("exif", file.exif)
        in_subprocess = name == "WEBP" and any(part in data for part in webp.LOSSLESS_PARTS)
        fixed_bytes = webp.PROCESS_BYTES * in_subprocess + file.coefficient_bytes + len(data) + len(file.data)
        image.info.update(fixed_bytes=fixed_bytes, is_complete=file.is_complete, in_subprocess=in_subprocess)
        return image


def needed_bytes(image: Image.Image, scale: int = 1) -> int:
    """Return how many bytes of memory decoding an opened image to RGB needs, a JPEG at 1/`scale` of its sides."""
    pixel_bytes = 1 if image.mode in ("1", "L", "P") else 2 if image.mode == "I;16" else 4
    if image.format == "WEBP":
        pixel_bytes = 16  # two canvases in libwebp and two copies in Pillow, of 4 bytes each
    elif image.info.get("compression") in (1, 2) or _box(image) != (0, 0, *image.size):
        pixel_bytes += 5  # a run-length encoded BMP, or a GIF that gets a white canvas
    if not image.info.get("is_complete", True):
        pixel_bytes *= 3  # decoded twice and compared
    if exif_orientation(image.info) in UPRIGHT:
        pixel_bytes += 4  # a rotated or mirrored copy
    size = image.width * image.height * pixel_bytes // scale**2
    return size + max(image.size) * ROW_BYTES // scale + image.info.get("fixed_bytes", 0)


def to_rgb(image: Image.Image, scale: int = 1, resize_for: Any = None) -> Image.Image:
    """Decode the first frame to RGB: upright according to EXIF, transparency on white, of 16 bits the upper 8.

    A JPEG is decoded at 1/`scale` of its sides. With a model.ImagePreprocessor it is resized, too. Raises InvalidInput.
    """
    file, is_complete = getattr(image, "fp", None), image.info.get("is_complete", True)
    budget = getattr(file, "budget", None)
    with _explaining(image.format or "image", is_complete):
        decoded = _load(image, scale)
        if not is_complete:
            # libjpeg skips what is in front of the added end marker if the pixels are complete; otherwise they change.
            padded = JpegImageFile(_TimedBytes(file.getvalue().removesuffix(END) + bytes(range(1, 255)) + END, budget))
            if ImageChops.difference(decoded, _load(padded, scale)).getbbox():
                raise EOFError
        # Not ImageOps.exif_transpose, which rewrites all of the EXIF: that takes seconds if there is a lot of it.
        orientation = exif_orientation(image.info)
        upright = decoded.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else decoded
        return resize(upright, resize_for, budget) if resize_for else _on_white(upright)


def resize(image: Image.Image, preprocessor: Any, budget: CpuBudget | None = None) -> Image.Image:
    """Return an upright image as RGB, resized and cropped as a model.ImagePreprocessor specifies.

    A large one, which should be in memory once, not twice, is converted and made narrow strip by strip.
    """
    (scaled_width, scaled_height), (left, top) = preprocessor.fit(image.size)
    height, width = preprocessor.size
    resample = Image.Resampling[preprocessor.interpolation.upper()]
    if max(image.width * image.height, scaled_width * scaled_height) <= STRIP_PIXELS:
        scaled = _on_white(image).resize((scaled_width, scaled_height), resample)
        return scaled.crop((left, top, left + width, top + height))
    x, y = image.width / scaled_width, image.height / scaled_height
    right, bottom = min(image.width, (left + width) * x), min(image.height, (top + height) * y)
    narrow = Image.new("RGB", (width, image.height))
    rows = max(1, STRIP_PIXELS // image.width)
    for start in range(0, image.height, rows):
        if budget:
            budget.spend()
        strip = _on_white(image.crop((0, start, image.width, min(start + rows, image.height))))
        narrow.paste(strip.resize((width, strip.height), resample, (left * x, 0, right, strip.height)), (0, start))
    return narrow.resize((width, height), resample, (0, top * y, width, bottom))


class _TimedBytes(io.BytesIO):
    """An image file's bytes, readable while there is CPU time left; then `read` raises InvalidInput."""

    def __init__(self, data: bytes, budget: CpuBudget | None) -> None:
        super().__init__(data)
        self.budget = budget or CpuBudget()

    def read(self, size: int | None = -1) -> bytes:
        self.budget.spend()
        return super().read(size)


class _FirstFrameGif(GifImageFile):
    """A GIF that ignores disposal methods: opening one, Pillow would allocate the area to dispose of."""

    disposal_method = property(lambda self: 0, lambda self, method: None)


# Pillow's other decoders are never tried: libtiff and libavif do as much work as a file of one kilobyte demands.
IMAGE_FILES: tuple[Any, ...] = (JpegImageFile, PngImageFile, WebPImageFile, _FirstFrameGif, BmpImageFile)
DECODERS = dict(zip(FORMATS, IMAGE_FILES, strict=True))


@contextmanager
def _explaining(name: str, is_complete: bool = True) -> Iterator[None]:
    """Turn any error of a decoder into InvalidInput; a damaged file can make Pillow raise anything."""
    shown = "WebP" if name == "WEBP" else name
    try:
        yield
    except (InvalidInput, Unavailable):
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit
        raise InvalidInput(f"the {shown} has too many pixels: resize it") from error
    except Exception as error:
        ends_early = any(isinstance(e, IndexError | EOFError | struct.error) for e in (error, error.__cause__))
        if ends_early or not is_complete or "truncated" in str(error).lower():
            raise InvalidInput(f"the {shown} is incomplete: the upload was cut off") from error
        raise InvalidInput(f"a {shown} that cannot be read: {error}") from error


def _box(image: Any) -> tuple[int, int, int, int]:
    """Return the part of the canvas that an opened image's first frame covers: left, top, right, bottom."""
    return image.tile[0].extents if getattr(image, "tile", None) else (0, 0, *image.size)


def _load(image: Any, scale: int) -> Image.Image:
    """Decode an opened image; a GIF whose first frame does not cover the canvas is put on white."""
    if image.info.get("in_subprocess"):
        budget = image.fp.budget
        pixels, seconds = webp.decode(image.fp.getvalue(), needed_bytes(image), budget.spend())
        budget.spend(seconds)
        return Image.frombytes(image.mode, image.size, pixels, "raw", image.rawmode)
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    box = _box(image)
    image.load()
    if image.mode == "P" and image.palette is None:
        raise ValueError("its palette is missing")
    if box == (0, 0, *image.size):
        return image
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(_on_white(image.crop(box)), box)
    return canvas


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which turns nearly all of a 16-bit image white.
        pixels = np.asarray(image)
        gray = np.where(pixels == image.info.get("transparency", -1), 255, pixels >> 8)
        image = Image.fromarray(gray.astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
