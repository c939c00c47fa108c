"""Make the README's screenshots: the page with both pictures, on a desk and on a phone.

    python -m tests.screenshot

A server is started for it. It looks best where the font Inter is installed, which the page asks for first.
"""

import io
import sys

from PIL import Image

from client.endpoint import local_server
from tests.browsing import CHROMIUM, NO_CHROMIUM, browsing, wait_for_answers
from tests.server_process import NEWT, ROOT, TENCH

SHOTS = {
    "page.png": {"viewport": {"width": 1280, "height": 1400}, "color_scheme": "light"},
    "page-phone.png": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "dark",
        "has_touch": True,
        "is_mobile": True,
    },
}
COLOURS = 256  # of which a screenshot is made, so that its file is small


def main() -> int:
    """Write docs/page*.png, or say what is missing."""
    if not CHROMIUM:
        print(f"tests/screenshot.py: {NO_CHROMIUM}", file=sys.stderr)
        return 1
    with local_server() as endpoint, browsing() as browser:
        for name, options in SHOTS.items():
            with browser.new_context(reduced_motion="reduce", **options) as context:
                page = context.new_page()
                for _ in ("to warm up", "for the picture"):
                    page.goto(endpoint.url)
                    for shown, image in enumerate((NEWT, TENCH), 1):  # one by one: each has its own time
                        page.get_by_label("Choose images").set_input_files(image)
                        wait_for_answers(page, shown)
                        page.wait_for_load_state("networkidle")
                shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            file = ROOT / "docs" / name
            file.parent.mkdir(exist_ok=True)
            shot.quantize(COLOURS, kmeans=4, dither=Image.Dither.NONE).save(file, optimize=True)
            print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
