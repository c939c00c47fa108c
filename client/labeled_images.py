"""Images with known classes, for test_onnx.py and test_server.py: the presets, or those of `--expect`."""

import os
import re
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path

from runtime.settings import ROOT

CLASSES = {"n01440764_tench.jpeg": (0, "tench"), "n01632777_axolotl.jpeg": (26, "common newt")}
UNPROVEN = "; the illustrations are proven only for efficientnet-lite0: for another model, run `make photos` first"
EXPECT_HELP = "an image and its class id, in place of the preset images; can be repeated"


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
        """Return the result as text. Raises AssertionError if it is another class."""
        actual = f"{result['class_id']} {result['class_name']}"
        if result["class_id"] != self.class_id or self.class_name not in (None, result["class_name"]):
            expected = f"{self.class_id} {self.class_name or ''}".rstrip()
            hint = UNPROVEN if self.class_name and self.path.parent == ROOT / "images" else ""
            raise AssertionError(f"expected {expected}, got {actual}{hint}")
        return f"{actual}, probability {result['probability']:.3f}"


def presets() -> list[LabeledImage]:
    """Return the assignment's photographs if both are in images/photos/, otherwise illustrations of the same names."""
    photos = ROOT / "images" / "photos"
    folder = photos if all((photos / name).is_file() for name in CLASSES) else photos.parent
    return [LabeledImage(folder / name, *label) for name, label in CLASSES.items()]


def parse_expectation(argument: str) -> LabeledImage:
    """Parse an `--expect IMAGE=CLASS_ID`. Raises ArgumentTypeError, which argparse prints."""
    match = re.fullmatch("(.+)=([0-9]{1,9})", argument)
    if not (match and os.access(match[1], os.R_OK) and Path(match[1]).is_file()):
        raise ArgumentTypeError(f"{argument!r}: expected IMAGE=CLASS_ID, a readable file and a non-negative integer")
    return LabeledImage(Path(match[1]), int(match[2]))
