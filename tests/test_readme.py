"""README.md names every setting, route, option, make target and script that there is."""

import re
import subprocess
import sys

import pytest

from tests.serving import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PATHS = sorted([*ROOT.glob("*.py"), ROOT / "deploy/ray_serve.py"])
SOURCES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PATHS}


def found(pattern, *names):
    """Return what `pattern` finds in the named scripts, or in all; an empty set would prove nothing."""
    everything = {match for name in names or SOURCES for match in re.findall(pattern, SOURCES[name])}
    assert everything
    return sorted(everything)


@pytest.mark.parametrize("name", found(r'(?:integer|choice|environ\.get)\("([A-Z_]+)"', *SOURCES))
def test_every_setting_is_in_the_table(name):
    assert f"| `{name}` |" in README


@pytest.mark.parametrize(("method", "route"), found(r'@\w+\.(route|post)\("([^"]+)"', "routes.py", "platforms.py"))
def test_every_route_is_in_the_table(method, route):
    assert f"| `{method.upper().replace('ROUTE', 'GET')} {route}` |" in README


@pytest.mark.parametrize("script", ["convert_to_onnx.py", "test_onnx.py", "test_server.py"])
def test_every_option_of_every_command_is_named(script):
    help_text = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_text.stdout)) - {"--help"}
    assert options
    assert {option for option in options if option not in README} == set()


@pytest.mark.parametrize("target", re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
def test_every_make_target_is_named(target):
    assert target == "help" or f"`make {target}`" in README


@pytest.mark.parametrize("script", SOURCES)
def test_every_script_is_named_and_says_how_to_run_it(script):
    assert f"`{script}`" in README
    assert re.search(r"^    \S", SOURCES[script].split('"""')[1], re.MULTILINE)
