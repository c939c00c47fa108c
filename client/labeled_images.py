"""Images with known classes, for test_onnx.py and test_server.py: the preset ones, or those of `--expect`.

The presets include the assignment's own photographs of the same names if `make photos` has put them in images/photos/.
"""

import os
import re
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path

from runtime.settings import ROOT

EXPECT_HELP = "your own image and its class id, in place of the preset ones; may be repeated"


@dataclass(frozen=True)
class LabeledImage:
    """An image file and its class. Without a name, the class may have any name."""

    path: Path
    class_id: int
    class_name: str | None = None

    @property
    def name(self) -> str:
        """The path as reports show it: relative to this repository if it is inside."""
        return str(self.path).removeprefix(f"{ROOT}{os.sep}")

    def check(self, result: dict) -> str:
        """Return the class and the probability of a result as text. Raises AssertionError if the class differs."""
        actual = f"{result['class_id']} {result['class_name']}"
        if result["class_id"] != self.class_id or self.class_name not in (None, result["class_name"]):
            raise AssertionError(f"expected {self.class_id} {self.class_name or ''}".rstrip() + f", got {actual}")
        return f"{actual}, probability {result['probability']:.3f}"


def presets() -> list[LabeledImage]:
    """Return the preset images; those in images/photos/ only if they exist."""
    classes = {"n01440764_tench.jpeg": (0, "tench"), "n01632777_axolotl.jpeg": (26, "common newt")}
    illustrations = [LabeledImage(ROOT / "images" / name, *label) for name, label in classes.items()]
    photos = [LabeledImage(ROOT / "images/photos" / name, *label) for name, label in classes.items()]
    return illustrations + [photo for photo in photos if photo.path.is_file()]


def parse_expectation(argument: str) -> LabeledImage:
    """Parse an `--expect IMAGE=CLASS_ID`. Raises ArgumentTypeError, which argparse prints."""
    match = re.fullmatch("(.+)=([0-9]{1,9})", argument)
    if not (match and os.access(match[1], os.R_OK) and Path(match[1]).is_file()):
        form = "a readable file and a non-negative integer, such as cat.jpg=7"
        raise ArgumentTypeError(f"{argument!r}: expected IMAGE=CLASS_ID, {form}")
    return LabeledImage(Path(match[1]), int(match[2]))
