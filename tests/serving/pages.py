"""What the tests of the page do with it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browsing import wait_for_results
from tests.server_process import DEADLINE_S

KEY = "the 'key' of $HOME"
Open = Callable[..., AbstractContextManager[Page]]
expect.set_options(timeout=DEADLINE_S * 1000)


def choose(page: Page, *images: Path | dict) -> None:
    """Choose files as with the button, and wait until each is classified or refused."""
    shown = page.locator(".card").count()
    files = [file(each.name, each.read_bytes()) if isinstance(each, Path) else each for each in images]
    page.get_by_label("Choose images").set_input_files(files)
    wait_for_results(page, shown + len(images))


def file(name: str, content: bytes, kind: str = "image/jpeg") -> dict:
    """Return a file for Playwright."""
    return {"name": name, "mimeType": kind, "buffer": content}


def rows(page: Page, card: int = 0) -> list[list[str]]:
    """Return an image's class names and probabilities as the page shows them."""
    return [
        [row.locator("th").evaluate("cell => cell.firstChild.data"), row.locator("td").inner_text()]
        for row in page.locator(".card").nth(card).locator("tbody tr").all()
    ]


def give_key(page: Page, key: str) -> None:
    """Fill in the key and send it."""
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use this key").click()


def drag(page: Page, kind: str, *paths: Path) -> None:
    """Dispatch an event of dragging files over the page."""
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    event = {"type": kind, "x": 30, "y": 30, "data": data}
    page.context.new_cdp_session(page).send("Input.dispatchDragEvent", event)
