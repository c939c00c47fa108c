"""Image formats recognized by their first bytes: those that are accepted, and those that are often sent instead."""

import re

from runtime.errors import InvalidInput

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # the names that Pillow and the responses use
ACCEPTED = re.compile(
    rb"(\xff\xd8)|(\x89PNG\r\n\x1a\n)|(RIFF.{4}WEBP)|(GIF8[79]a)|(BM.{4}\0{4}|BM.{12}[\x0c(48@l|]\0{3})", re.DOTALL
)
OTHERS = {
    rb".{4}ftyp.{0,40}avi[fs]": "this is an AVIF file (export it as JPEG)",
    rb".{4}ftyp.{0,40}(hei[cmsx]|hev[cmsx]|mif1|msf1)": "this is a HEIC file (export it as JPEG)",
    rb".{4}ftypcrx|II\*\0.{4}CR|FUJIFILM|IIR[OS]|MMOR|IIU\0": "this is a camera raw file",
    rb"II[*+]\0|MM\0[*+]": "this is a TIFF or camera raw file",
    rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51": "this is a JPEG 2000 file",
    rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a": "this is a JPEG XL file",
    rb".{4}ftyp": "this is a video",
    rb"(?i:\s*+<(!doctype html|html))": "this is a web page",
    rb"(\xef\xbb\xbf)?\s*+<(svg|[?!].{0,2000}<svg)": "this is an SVG file",
    rb"\s*+%PDF-": "this is a PDF file",
    rb"\0\0\x01\0": "this is an ICO file",
    rb"\x1f\x8b": "this is compressed with gzip",
    rb"\Z": "the image is empty",
}
KNOWN = re.compile(b"|".join([ACCEPTED.pattern, *OTHERS]), re.DOTALL)  # any file that `recognize` has a name for


def recognize(data: bytes) -> str:
    """Return which of FORMATS a file is. Raises InvalidInput, which says what it is instead."""
    if found := ACCEPTED.match(data):
        return FORMATS[found.groups().index(found[0])]
    reasons = (reason for pattern, reason in OTHERS.items() if re.match(pattern, data, re.DOTALL))
    raise InvalidInput(f"{next(reasons, 'not an image')}; send JPEG, PNG, WebP, GIF or BMP")
