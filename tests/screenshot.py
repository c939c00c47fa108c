"""Make the README's screenshots: the page with both images, on a desktop and on a phone.

    python -m tests.screenshot

Starts a server. Install the font Inter, the page's first choice, for the same look as in docs/.
"""

import io
import sys

from PIL import Image

from client.endpoint import local_server
from tests.browsing import CHROMIUM, NO_CHROMIUM, browsing, wait_for_results
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
COLORS = 256  # of a screenshot, to keep its file small


def main() -> int:
    """Write docs/page*.png, or report what is missing."""
    if not CHROMIUM:
        print(f"tests/screenshot.py: {NO_CHROMIUM}", file=sys.stderr)
        return 1
    with local_server() as endpoint, browsing() as browser:
        for name, options in SHOTS.items():
            with browser.new_context(reduced_motion="reduce", **options) as context:
                page = context.new_page()
                for _ in ("to warm up", "for the screenshot"):
                    page.goto(endpoint.url)
                    for shown, image in enumerate((NEWT, TENCH), 1):  # one by one, so that none waits for another
                        page.get_by_label("Choose images").set_input_files(image)
                        wait_for_results(page, shown)
                        page.wait_for_load_state("networkidle")
                shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            file = ROOT / "docs" / name
            file.parent.mkdir(exist_ok=True)
            shot.quantize(COLORS, kmeans=4, dither=Image.Dither.NONE).save(file, optimize=True)
            print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
