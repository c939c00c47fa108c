"""Write into docs/ what comes from the code: the tables of settings, and what `--help` says.

    python -m tests.generate_docs

tests/test_readme.py holds the pages to it.
"""

import os
import re
import subprocess
import sys
from dataclasses import fields

from runtime.settings import EndpointSettings, ModelSettings, RaySettings, ServerSettings
from tests.server_process import ROOT

GROUPS = {group.__name__: group for group in (ServerSettings, ModelSettings, EndpointSettings, RaySettings)}
PAGES = ("configuration.md", "cli.md")
MARKED = re.compile(r"(<!-- (settings|help): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def describe_settings(group: str) -> str:
    """Return the table of a group of settings, in Markdown."""
    lines = ["| variable | default | value | meaning |", "|---|---|---|---|"]
    for known in fields(GROUPS[group]):
        # What depends on the machine is said in the help.
        shown = "" if known.default is None else f"`{known.default}`".replace(f"{ROOT}{os.sep}", "")
        lines.append(f"| `{known.name}` | {shown} | {known.metadata['expected']} | {known.metadata['help']} |")
    return "\n".join(lines) + "\n"


def describe_command(script: str) -> str:
    """Return what the script's `--help` says, as a block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BANANA_")}
    ran = subprocess.run(
        [sys.executable, ROOT / script, "--help"],
        env=environment | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    return f"```text\n{ran.stdout}```\n".replace(f"{ROOT}{os.sep}", "")


def render(page: str) -> str:
    """Return the page with every marked part as the code has it today."""
    describe = {"settings": describe_settings, "help": describe_command}
    return MARKED.sub(lambda part: part[1] + describe[part[2]](part[3]) + part[4], page)


def main() -> None:
    """Write the pages anew."""
    for name in PAGES:
        path = ROOT / "docs" / name
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
