"""A headless Chromium, for the tests of the page and for its screenshots."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "no chromium, chromium-browser or google-chrome is installed: apt-get install chromium"


@contextmanager
def browsing() -> Iterator[Browser]:
    """Run the browser while the context lasts."""
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as browser:
        yield browser


def wait_for_results(page: Page, count: int) -> None:
    """Return once the page shows `count` images, each with its classes or an error."""
    page.locator(".card[aria-busy=false]").nth(count - 1).wait_for()
