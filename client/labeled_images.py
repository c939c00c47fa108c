"""The images with known classes that test_onnx.py and test_server.py ask for: the preset ones, or those of `--expect`.

The assignment's own photographs of the same names, in images/photos/, are taken in where `make photos` has put them.
"""

import os
import re
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path

from runtime.settings import ROOT

EXPECT_HELP = "a picture of your own and its class id, in place of the preset ones; again for more"


@dataclass(frozen=True)
class LabeledImage:
    """An image file and its right class; without a name the class may have any."""

    path: Path
    class_id: int
    class_name: str | None = None

    @property
    def name(self) -> str:
        """The image's path as a report shows it."""
        return str(self.path).removeprefix(f"{ROOT}/")

    def check(self, answer: dict) -> str:
        """Return the answer's class and probability in words. Raises AssertionError if the class is another one."""
        actual = f"{answer['class_id']} {answer['class_name']}"
        if answer["class_id"] != self.class_id or self.class_name not in (None, answer["class_name"]):
            raise AssertionError(f"expected {self.class_id} {self.class_name or ''}".rstrip() + f", got {actual}")
        return f"{actual}, probability {answer['probability']:.3f}"


def presets() -> list[LabeledImage]:
    """Return the preset images that are there; those in images/ always are."""
    classes = {"n01440764_tench.jpeg": (0, "tench"), "n01632777_axolotl.jpeg": (26, "common newt")}
    illustrations = [LabeledImage(ROOT / "images" / name, *right) for name, right in classes.items()]
    photos = [LabeledImage(ROOT / "images/photos" / name, *right) for name, right in classes.items()]
    return illustrations + [photo for photo in photos if photo.path.is_file()]


def parse_expectation(argument: str) -> LabeledImage:
    """Return what an `--expect PICTURE=CLASS_ID` names. Raises ArgumentTypeError, which argparse shows."""
    match = re.fullmatch("(.+)=([0-9]{1,9})", argument)
    if not (match and os.access(match[1], os.R_OK) and Path(match[1]).is_file()):
        form = "a file that can be read, and a whole number from 0, such as cat.jpg=7"
        raise ArgumentTypeError(f"{argument!r}: write PICTURE=CLASS_ID, {form}")
    return LabeledImage(Path(match[1]), int(match[2]))
