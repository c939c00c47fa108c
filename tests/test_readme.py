"""README.md names every setting, route, option, make target and script that there is, and its example works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.colours import COLOURS, Colours
from model import OnnxClassifier
from tests.serving import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def scripts():
    """Return the names of this repository's scripts; where git tracks them, somebody's own beside them are none."""
    here = sorted(path.name for path in ROOT.glob("*.py"))
    if not (ROOT / ".git").exists():
        return here
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    return [name for name in here if name in tracked]


SOURCES = {name: (ROOT / name).read_text(encoding="utf-8") for name in [*scripts(), "deploy/ray_serve.py"]}


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


def test_ones_own_model_is_deployed_by_the_readmes_commands(tmp_path):
    section = README.partition("### Deploy your own model")[2].partition("\n#")[0]
    commands, answer = re.findall(r"(?:^    .+\n)+", section, re.MULTILINE)
    for script in ROOT.glob("*.py"):
        (tmp_path / script.name).symlink_to(script)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BANANA_")}
    environment = clean | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    shell = ["bash", "-euo", "pipefail", "-c", commands]
    result = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith(answer.strip().partition("probability")[0])

    classifier = OnnxClassifier(tmp_path / "colours.onnx")
    assert classifier.class_names == ["red", "green", "blue", "yellow", "grey"]
    network = Colours().eval()
    network.load_state_dict(torch.load(tmp_path / "colours.pth"))
    for right, left in enumerate(COLOURS):
        picture = Image.new("RGB", (128, 96), tuple(int(255 * level) for level in left))
        picture.paste(tuple(int(255 * level) for level in COLOURS[right - 1]), (64, 0, 128, 96))
        ((first, second, third),) = classifier.classify([picture], top_k=3)
        assert {first.class_id, second.class_id} == {right, (right - 1) % 5}
        assert second.probability > 0.5 > third.probability
        pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            expected = network((pixels - 0.5) / 0.5).sigmoid()[0]
        assert first.probability == pytest.approx(float(expected.max()), abs=1e-4)
