"""The pictures with known classes that test_onnx.py and test_server.py ask for: the preset ones, or one's own.

images/expected.json says which; the assignment's own photographs of the same names, in images/photos/, are taken in
where `make photos` has put them. A model with other classes has other pictures: those of `--expect`.
"""

import json
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "images"

EXPECT_HELP = (
    "a picture of your own and its class, in place of the preset ones; again for more; or a .json file of them"
)


@dataclass(frozen=True)
class Preset:
    """A picture and its right class; without a name the class may have any."""

    path: Path
    class_id: int
    class_name: str | None = None

    @property
    def name(self) -> str:
        """The picture's path as a report shows it."""
        return str(self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path)

    def check(self, class_id: int, class_name: str) -> str:
        """Return what came, in words. Raises AssertionError with what was expected if it is something else."""
        came = f"{class_id} {class_name}"
        if (class_id, class_name) != (self.class_id, self.class_name or class_name):
            raise AssertionError(f"expected {self.class_id} {self.class_name or ''}".rstrip() + f", got {came}")
        return came


def presets() -> list[Preset]:
    """Return the preset pictures that are there; those in images/ always are."""
    illustrations = _in_file(IMAGES / "expected.json")
    photos = [Preset(IMAGES / "photos" / known.path.name, known.class_id, known.class_name) for known in illustrations]
    return illustrations + [photo for photo in photos if photo.path.is_file()]


def expected(argument: str) -> list[Preset]:
    """Return what an `--expect` names: PICTURE=CLASS_ID, or a JSON file such as images/expected.json.

    Raises ArgumentTypeError, which argparse shows, also where a picture cannot be read.
    """
    if argument.endswith(".json"):
        known = _in_file(Path(argument))
    else:
        path, _, class_id = argument.rpartition("=")
        if not (path and class_id.isascii() and class_id.isdigit() and len(class_id) < 10):
            raise ArgumentTypeError(
                f"{argument!r}: write PICTURE=CLASS_ID, where the class id is a whole number from 0, "
                "such as cat.jpg=7, or name a .json file"
            )
        known = [Preset(Path(path), int(class_id))]
    for preset in known:
        try:
            preset.path.open("rb").close()
        except OSError as error:
            raise ArgumentTypeError(f"{argument!r}: {preset.path} cannot be read: {error.strerror}") from error
    return known


def _in_file(path: Path) -> list[Preset]:
    """Return the presets of a JSON file, whose pictures lie beside it. Raises ArgumentTypeError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentTypeError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ArgumentTypeError(f"{path} is not JSON: {error}") from error
    if not (isinstance(content, dict) and content and all(map(_is_class, content.values()))):
        raise ArgumentTypeError(
            f'{path} has to hold an object such as {{"cat.jpg": {{"class_id": 7, "class_name": "cat"}}}}, '
            "where the class id is a whole number from 0, and the name may be left out"
        )
    return [Preset(path.parent / name, **right) for name, right in content.items()]


def _is_class(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"class_id"} <= value.keys() <= {"class_id", "class_name"}
        and type(value["class_id"]) is int
        and value["class_id"] >= 0
        and type(value.get("class_name", "")) is str
    )
