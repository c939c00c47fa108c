"""The page for a browser: what it gives to copy runs, and gets the class."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.server_process import TENCH
from tests.serving.pages import KEY, choose, file, give_key

NASTY_NAMES = ["tench.jpeg", 'it\'s "a" $(touch ran) `touch ran` \\ ;!.jpeg', "- \u00fc \u202e\n\t.jpeg", "@;type=x,y"]


@pytest.mark.parametrize("name", NASTY_NAMES)
@pytest.mark.parametrize("snippet", ["curl", "Python"])
def test_what_is_copied_runs_and_gets_the_class(served, opened, tmp_path, name, snippet):
    (tmp_path / name).write_bytes(TENCH.read_bytes())
    with opened(served, permissions=["clipboard-read", "clipboard-write"]) as page:
        choose(page, file(name, TENCH.read_bytes()))
        run_copied(page, snippet, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("snippet", ["curl", "Python"])
def test_what_is_copied_has_the_key_from_the_environment(locked, opened, tmp_path, snippet):
    (tmp_path / "picture").write_bytes(TENCH.read_bytes())
    with opened(locked, permissions=["clipboard-read", "clipboard-write"]) as page:
        give_key(page, KEY)
        choose(page, file("picture", TENCH.read_bytes(), ""))
        assert KEY not in run_copied(page, snippet, tmp_path, BANANA_API_KEY=KEY)


def run_copied(page: Page, snippet: str, folder: Path, **environment: str) -> str:
    """Copy the code with the button, run it in `folder`, and see that it gets the class; return it."""
    page.get_by_text("Send this picture from a program").click()
    page.get_by_role("button", name=f"Copy the {snippet} code").click()
    expect(page.locator(".snippet", has_text=snippet).get_by_text("Copied")).to_be_visible()
    code = page.evaluate("navigator.clipboard.readText()")
    command = {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"]}[snippet]
    environment = os.environ | {"LC_ALL": "C.UTF-8"} | environment
    ran = subprocess.run([*command, code], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (json.loads(ran.stdout)["class_name"] if snippet == "curl" else ran.stdout.strip()) == "tench"
    return code
