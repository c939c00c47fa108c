"""Write the tables of settings into docs/configuration.md.

    python -m tests.generate_docs

tests/test_readme.py checks that the page is up to date.
"""

import os
import re
from dataclasses import fields

from runtime.settings import EndpointSettings, ModelSettings, RaySettings, ServerSettings
from tests.server_process import ROOT

GROUPS = {group.__name__: group for group in (ServerSettings, ModelSettings, EndpointSettings, RaySettings)}
PAGE = "configuration.md"
MARKED = re.compile(r"(<!-- settings: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def describe_settings(group: str) -> str:
    """Return the table of a group of settings, in Markdown."""
    lines = ["| variable | default | value | meaning |", "|---|---|---|---|"]
    for known in fields(GROUPS[group]):
        # The meaning describes a default that depends on the machine.
        shown = "" if known.default is None else f"`{known.default}`".replace(f"{ROOT}{os.sep}", "")
        lines.append(f"| `{known.name}` | {shown} | {known.metadata['expected']} | {known.metadata['help']} |")
    return "\n".join(lines) + "\n"


def render(page: str) -> str:
    """Return the page with the current table in every marked part."""
    return MARKED.sub(lambda part: part[1] + describe_settings(part[2]) + part[3], page)


def main() -> None:
    """Rewrite the page."""
    path = ROOT / "docs" / PAGE
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
