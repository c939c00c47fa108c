"""The preset pictures and the class that each has to come out as, for test_onnx.py and test_server.py.

    python -c "import presets; print(presets.presets())"

images/expected.json says which; the assignment's own photographs of the same names, in images/photos/, are taken in
where `make photos` has put them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent
IMAGES = ROOT / "images"


@dataclass(frozen=True)
class Preset:
    """A picture and its right class."""

    path: Path
    class_id: int
    class_name: str

    @property
    def name(self) -> str:
        """The picture's path as a report shows it."""
        return str(self.path.relative_to(ROOT))

    def check(self, class_id: int, class_name: str) -> str:
        """Return what came, in words. Raises AssertionError with what was expected if it is something else."""
        came = f"{class_id} {class_name}"
        if (class_id, class_name) != (self.class_id, self.class_name):
            raise AssertionError(f"expected {self.class_id} {self.class_name}, got {came}")
        return came


def presets() -> list[Preset]:
    """Return the preset pictures that are there; those in images/ always are."""
    expected = json.loads((IMAGES / "expected.json").read_text(encoding="utf-8"))
    illustrations = [Preset(IMAGES / name, **right) for name, right in expected.items()]
    photos = [Preset(IMAGES / "photos" / name, **right) for name, right in expected.items()]
    return illustrations + [photo for photo in photos if photo.path.is_file()]
