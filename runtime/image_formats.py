"""Image formats recognized by their first bytes: those that are accepted, and those that are often sent instead."""

import re

from runtime.errors import InvalidInput

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # the names that Pillow and the responses use
ACCEPTED = re.compile(
    rb"(\xff\xd8)|(\x89PNG\r\n\x1a\n)|(RIFF.{4}WEBP)|(GIF8[79]a)|(BM.{4}\0{4}|BM.{12}[\x0c(48@l|]\0{3})", re.DOTALL
)
SEND = "send JPEG, PNG, WebP, GIF or BMP"
OTHERS = {
    rb".{4}ftyp.{0,40}avi[fs]": f"this is an AVIF file; {SEND}: export it as JPEG",
    rb".{4}ftyp.{0,40}(hei[cmsx]|hev[cmsx]|mif1|msf1)": f"this is a HEIC file; {SEND}: export it as JPEG",
    rb".{4}ftypcrx|II\*\0.{4}CR|FUJIFILM|IIR[OS]|MMOR|IIU\0": f"this is a camera raw file; {SEND}",
    rb"II[*+]\0|MM\0[*+]": f"this is a TIFF or camera raw file; {SEND}",
    rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51": f"this is a JPEG 2000 file; {SEND}",
    rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a": f"this is a JPEG XL file; {SEND}",
    rb".{4}ftyp": f"this is a video; {SEND}",
    rb"(?i:\s*+<(!doctype html|html))": f"this is a web page; {SEND}",
    rb"(\xef\xbb\xbf)?\s*+<(svg|[?!].{0,2000}<svg)": f"this is an SVG file; {SEND}",
    rb"\s*+%PDF-": f"this is a PDF file; {SEND}",
    rb"\0\0\x01\0": f"this is an ICO file; {SEND}",
    rb"\x1f\x8b": f"this is compressed with gzip; {SEND}",
    rb"\Z": f"the image is empty; {SEND}",
}
KNOWN = re.compile(b"|".join([ACCEPTED.pattern, *OTHERS]), re.DOTALL)  # any file that `recognize` has a name for


def recognize(data: bytes) -> str:
    """Return which of FORMATS a file is. Raises InvalidInput, which says what it is instead."""
    if found := ACCEPTED.match(data):
        return FORMATS[found.groups().index(found[0])]
    reasons = (reason for pattern, reason in OTHERS.items() if re.match(pattern, data, re.DOTALL))
    raise InvalidInput(next(reasons, f"not an image; {SEND}"))
