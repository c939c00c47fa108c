"""Opening and decoding images that anyone may have sent, made or damaged in whatever way.

What a file may cost is bounded here; how many pixels it may have, in model.ImagePreprocessor.
"""

import io
import re
import warnings
from time import thread_time

import numpy as np
import PIL.WebPImagePlugin  # noqa: F401  the one of FORMATS that Image.open does not import by itself
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile

from runtime.errors import InvalidInput

# No other decoder of Pillow's is ever tried: libtiff's and libavif's do as much work as a file of a kilobyte asks for.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# model.ImagePreprocessor checks the limit, as early.
Image.MAX_IMAGE_PIXELS = None

# JPEG's own limit. Resampling needs a table in proportion to the longer side: 400 MB for a line of 25 million pixels.
MAX_SIDE = 65_535

# Scans of a progressive JPEG. Encoders write 10, or 18 of CMYK. One of 42 bytes may take 45 ms and change nothing.
MAX_SCANS = 32
SCAN = b"\xff\xda\x00"  # its marker, which a scan's data cannot contain

# Bytes of EXIF, of which a JPEG's should have under 65,536. Pillow makes an object of each fraction in a field: 10 s
# for 20 MB.
MAX_EXIF = 500_000

# Bytes of a PNG's compressed texts, of which Pillow would keep 64 million.
PngImagePlugin.MAX_TEXT_MEMORY = 4_000_000

# Seconds of CPU time for decoding, checked at every read. Only an image that was made to be slow takes more than 1.
MAX_CPU_S = 1.5

# A JPEG's scan of some of its colors. The decoder then keeps the whole image, as it does of a progressive JPEG.
PART_SCAN = re.compile(SCAN + rb"[\x08\x0a]")

# Pixels to convert to RGB at a time.
STRIP_PIXELS = 1_000_000

# What EXIF says of an image that does not lie upright, and what turns it.
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


def open_image(data: bytes, deadline: float | None = None) -> Image.Image:
    """Return the image in a file's content, of which no more than the header has been read.

    Nothing is read after `deadline`, in seconds of this thread's time: by default MAX_CPU_S from now.
    Raises InvalidInput.
    """
    if data.startswith(b"\xff\xd8") and data.count(SCAN) > MAX_SCANS:  # the first two bytes of a JPEG
        raise InvalidInput(f"the JPEG has more than {MAX_SCANS} scans: save it anew")
    try:
        return Image.open(_TimedBytes(data, deadline), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise InvalidInput(f"not a picture: send one of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        raise InvalidInput(f"the picture's header is damaged: {error}") from error


def decodes_incrementally(image: Image.Image, min_side: int) -> bool:
    """Return whether decoding with that `min_side` never has more than a quarter of the image in memory."""
    return (
        isinstance(image, JpegImageFile)
        and min(image.size) >= 2 * min_side > 0
        and "progressive" not in image.info
        and isinstance(image.fp, _TimedBytes)
        and not PART_SCAN.search(image.fp.getvalue())
    )


def to_rgb(image: Image.Image, min_side: int = 0, width: int | None = None) -> Image.Image:
    """Return the first frame as RGB: upright as its EXIF says, transparency on white, 16 bits cut to the upper 8.

    With `min_side` a JPEG is decoded at the smallest scale that leaves so many pixels a side. With `width` a large
    image is resized to it, strip by strip, so that it is in memory once, not twice. Raises InvalidInput.
    """
    try:
        if min_side and isinstance(image, JpegImageFile):
            image.draft(None, (min_side, min_side))
        image.load()
        if image.mode == "P" and image.palette is None:
            raise ValueError("its palette is missing")
        orientation = _orientation(image)  # after the pixels: a PNG is decoded for its EXIF, which may come behind
        # Not ImageOps.exif_transpose, which writes all of the EXIF anew: that takes seconds if there is much of it.
        upright = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
        if width is None or upright.width * upright.height <= STRIP_PIXELS:
            return _on_white(upright)
        narrow = Image.new("RGB", (width, upright.height))
        rows = max(1, STRIP_PIXELS // upright.width)
        for top in range(0, upright.height, rows):
            strip = _on_white(upright.crop((0, top, upright.width, min(top + rows, upright.height))))
            narrow.paste(strip.resize((width, strip.height), Image.Resampling.BILINEAR), (0, top))
        return narrow
    except Exception as error:  # as in open_image
        raise InvalidInput(f"the {image.format or 'picture'} is damaged or of an unusual kind: {error}") from error


class _TimedBytes(io.BytesIO):
    """An image's bytes, which can be read until a deadline."""

    def __init__(self, data: bytes, deadline: float | None) -> None:
        super().__init__(data)
        self.deadline = thread_time() + MAX_CPU_S if deadline is None else deadline

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes. Raises OSError."""
        if thread_time() > self.deadline:
            raise OSError("reading it takes too long: send fewer images in a call, or save it anew")
        return super().read(size)


class _PlainJpeg(JpegImageFile):
    """A JPEG whose EXIF only `_orientation` reads."""

    def _read_dpi_from_exif(self) -> None:
        """Do nothing: nobody asks for the resolution."""


# Pillow's own opener makes a JPEG that holds several images an MPO, of which it parses more.
Image.register_open(JpegImageFile.format, _PlainJpeg, Image.OPEN[JpegImageFile.format][1])


class _FirstFrameGif(GifImageFile):
    """A GIF without the disposal of its first frame, for which Pillow allocates the frame's area while it opens it."""

    disposal_method = property(lambda self: 0, lambda self, method: None)


Image.register_open(GifImageFile.format, _FirstFrameGif, Image.OPEN[GifImageFile.format][1])


def _orientation(image: Image.Image) -> int | None:
    exif = image.info.get("exif") or image.info.get("Raw profile type exif", "")
    if len(exif) > MAX_EXIF:
        raise ValueError(f"it has more than {MAX_EXIF} bytes of EXIF: save it without")
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None  # EXIF that cannot be read says nothing, and many a camera writes such


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which turns nearly all of a 16-bit image white.
        pixels = np.asarray(image)
        gray = np.where(pixels == image.info.get("transparency", -1), 255, pixels >> 8)
        image = Image.fromarray(gray.astype(np.uint8))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")
