"""README.md is followed as a newcomer follows it: its commands are run, and its tables of options hold."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from client.endpoint import free_port
from examples.colours import COLOURS, Colours
from model import OnnxClassifier
from runtime.settings import EndpointSettings, ModelSettings, RaySettings, ServerSettings
from tests.server_process import DEADLINE_S, ROOT, wait_until

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MADE = (".git", ".venv*", ".make", "*cache*", ".hypothesis", "*.onnx", "*.pth", "photos")  # not in a clone


def files():
    """Return the files of this repository; where git tracks them, somebody's own beside them are none."""
    if (ROOT / ".git").exists():
        tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
        return sorted(name for name in tracked if (ROOT / name).is_file())
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return sorted(
        str(path) for path in found if not any(Path(part).match(glob) for part in path.parts for glob in MADE)
    )


FILES = files()
SCRIPTS = [name for name in FILES if name.endswith(".py") and not name.startswith("tests/")]
SOURCES = {name: (ROOT / name).read_text(encoding="utf-8") for name in SCRIPTS}

# -- the commands ----------------------------------------------------------------------------------------------------
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$(?:\n*^```(?:text|json)\n(.*?)^```$)?", README, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
# Those in the running text, or in a table: the environment, and then one of these.
INLINE = re.findall(
    r"`((?:[A-Z_]+=\S+ )*(?:(?:make|python|docker|pip|curl|kubectl|\.venv-ray/bin/\w+) [^`]+|\.ci/run))`", PROSE
)

# What cannot be run here, and which file runs the same or has it: a test, a pipeline, or what a person runs.
PIPELINES = ".github/workflows"
ELSEWHERE = {
    "make test": (".ci/run", "make test"),
    ".ci/run": (f"{PIPELINES}/pre-deployment.yml", "run: .ci/run"),
    "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make run": (
        f"{PIPELINES}/pre-deployment.yml",
        "PIP_EXTRA_INDEX_URL: https://download.pytorch.org/whl/cpu",
    ),
    "python convert_to_onnx.py --model efficientnet-lite0": ("Makefile", "convert_to_onnx.py --model $(MODEL)"),
    "docker build --target cpu --build-arg MODEL=auto --tag classifier:cpu .": (
        "Makefile",
        "docker build --target $(TARGET) --build-arg MODEL=$(MODEL)",
    ),
    "docker run --rm --publish 8000:8000 --env BANANA_API_KEY=a-key-of-yours classifier:cpu": (
        "Makefile",
        "docker run --rm --read-only --cap-drop=ALL --security-opt=no-new-privileges --env BANANA_API_KEY",
    ),
    "docker build --tag classifier:gpu .": (f"{PIPELINES}/pre-deployment.yml", "docker build --build-arg MODEL --tag"),
    # Without --gpus: none of these machines has one.
    "docker run --rm --gpus all --publish 8000:8000 --env BANANA_API_KEY=a-key-of-yours classifier:gpu": (
        f"{PIPELINES}/pre-deployment.yml",
        "docker run --detach --name classifier",
    ),
    "kubectl create secret generic classifier --from-literal=api-key=a-key-of-yours": (
        "deploy/knative.yaml",
        "key: api-key",
    ),
    "sed 's|IMAGE|registry.example/classifier:1.0.0|' deploy/knative.yaml | kubectl apply -f -": (
        "tests/test_knative.py",
        "knative.yaml",
    ),
    "pip install -r requirements/client.txt": ("tests/test_install.py", "pip install -r requirements/client.txt"),
    "pip install 'tritonclient[http]'": ("requirements/dev.txt", "tritonclient[http]=="),
    ".venv-ray/bin/ray start": ("requirements/ray.txt", "ray[serve]=="),
    ".venv-ray/bin/serve shutdown": ("requirements/ray.txt", "ray[serve]=="),
    "MODEL_PATH=colours.onnx python server.py": ("client/endpoint.py", "[sys.executable, SERVER]"),
    "python benchmarks/precision.py FOLDER": ("benchmarks/precision.py", "python benchmarks/precision.py FOLDER"),
}
SERVING = ("make serve", "python server.py")
MAKE = 'make() { command make -o .venv/installed -o classifier.onnx $DRY "$@"; }'  # all of that is there already


def commands(block):
    """Return a block's commands; a line that is continued is one."""
    return block.replace("\\\n", " ").splitlines()


def named(block):
    """Return a name for a block that pytest can show."""
    return re.sub(r"\s+", " ", block)[:50].strip()


@pytest.fixture
def checkout(tmp_path):
    """Give a fresh clone, as it is when `make` has set it up."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*MADE))
    (clone / "classifier.onnx").symlink_to(ROOT / "classifier.onnx")
    (clone / ".venv").symlink_to(sys.prefix)
    return clone


def environment(**more):
    """Return a newcomer's environment, in which nothing is set for this repository."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("BANANA_", "MAKE", "MODEL"))}
    return clean | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"} | more


def follow(command, checkout, port):
    """Do what the README says, asking the server at `port` where it says 8000; return what is printed."""
    if command in ELSEWHERE:
        name, same = ELSEWHERE[command]
        assert same in (ROOT / name).read_text(encoding="utf-8")
        return ""
    if command in SERVING:
        return serve(command, checkout)
    dry = "--dry-run" if re.match(r"make (?!run( IMAGE=|$))", command) else ""
    for name in re.findall(r"^make .*?([A-Z_]+)=", command):
        assert re.search(rf"\b{name}\b", MAKEFILE + "".join(SOURCES.values()))
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    command = command.replace("python -m pytest", "python -m pytest --collect-only")  # the rest is done by `make test`
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{MAKE}\n{command}"],
        cwd=checkout,
        env=environment(DRY=dry),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def serve(command, checkout):
    """Run a command that serves until Ctrl-C: until it is healthy, and then that."""
    port, log = free_port(), checkout / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"{MAKE}\n{command}"],
            cwd=checkout,
            env=environment(DRY="", PORT=str(port)),
            stderr=output,
            start_new_session=True,
        )

    def is_healthy():
        assert process.poll() is None, log.read_text()
        # Before that line Ctrl-C ends it on the spot.
        return " listening " in log.read_text() and requests.get(f"http://127.0.0.1:{port}/healthcheck").ok

    try:
        wait_until(is_healthy, "it serves")
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(DEADLINE_S)
    assert " stopping " in log.read_text()
    assert " error " not in log.read_text()
    return ""


def as_shown(text):
    """Return a pattern of what the README shows: any number for a number, any spaces, anything for `…`."""
    text = text.replace("efficientnet-lite0", OnnxClassifier(ROOT / "classifier.onnx").model_name)
    return re.escape(plain(text)).replace("…", ".*")


def plain(text):
    """Return the text without spaces, and with every number alike."""
    return re.sub(r"\s+", "", re.sub(r"\d+(\.\d+)?(e-\d+)?", "0", text))


def test_every_block_says_what_it_is():
    assert not re.search(r"^    \S", PROSE, re.MULTILINE)
    assert {language for language, _, _ in BLOCKS} == {"mermaid", "sh", "python"}  # an output follows its command
    assert "```" not in PROSE


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        pytest.param(block, shown, id=named(block))
        for language, block, shown in BLOCKS
        if language == "sh" and "colours" not in block and "-m venv" not in block  # tests/test_install.py has that
    ],
)
def test_a_block_of_commands_works_and_prints_what_is_shown(block, shown, checkout, served):
    printed = [follow(command, checkout, served.port) for command in commands(block)]
    assert re.fullmatch(as_shown(shown), plain(printed[-1])) or not shown, printed[-1]


@pytest.mark.parametrize("command", sorted(set(INLINE)))
def test_a_command_in_the_text_works(command, checkout, served):
    follow(command, checkout, served.port)


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_run_elsewhere_is_still_in_the_text(command):
    assert command in INLINE or command in [line for _, block, _ in BLOCKS for line in commands(block)]


@pytest.mark.parametrize(("code", "shown"), [(code, shown) for kind, code, shown in BLOCKS if kind == "python"])
def test_the_code_works_and_prints_what_is_shown(code, shown, checkout, served):
    model = OnnxClassifier(ROOT / "classifier.onnx").model_name
    code = code.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}").replace("efficientnet-lite0", model)
    result = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(as_shown(shown), plain(result.stdout))


def test_ones_own_model_is_deployed_by_the_readmes_commands(checkout):
    [(block, shown)] = [(block, shown) for _, block, shown in BLOCKS if "examples/colours.py" in block]
    printed = [follow(command, checkout, free_port()) for command in commands(block)]
    assert re.fullmatch(as_shown(shown), plain(printed[-1]))

    classifier = OnnxClassifier(checkout / "colours.onnx")
    assert classifier.class_names == ["red", "green", "blue", "yellow", "grey"]
    network = Colours().eval()
    network.load_state_dict(torch.load(checkout / "examples/trained/colours.pth"))
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


# -- the tables ------------------------------------------------------------------------------------------------------
def found(pattern, *names):
    """Return what `pattern` finds in the named scripts, or in all; an empty set would prove nothing."""
    everything = {match for name in names or SOURCES for match in re.findall(pattern, SOURCES[name])}
    assert everything
    return sorted(everything)


def rows(heading):
    """Return the cells of every row of the first table under a heading."""
    section = re.search(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", README, re.MULTILINE | re.DOTALL)[1]
    table = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", section, re.MULTILINE)[1]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]


SETTINGS = {
    known.name for group in (ModelSettings, ServerSettings, EndpointSettings, RaySettings) for known in fields(group)
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_is_in_the_table(name):
    assert f"| `{name}` |" in README


@pytest.mark.parametrize("name", re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE))
def test_every_variable_of_make_is_in_the_table(name):
    assert f"| `{name}` |" in README.partition("For `make`:")[2] or name == "PORT"


@pytest.mark.parametrize("name", [row[0].strip("`") for row in rows("Settings")])
def test_every_setting_in_the_table_is_read_somewhere(name):
    assert name in SETTINGS


@pytest.mark.parametrize(
    ("method", "route"), found(r'@\w+\.(route|post)\("([^"]+)"', "server.py", "serving/platforms.py")
)
def test_every_route_is_in_the_table(method, route):
    assert [f"`{method.upper().replace('ROUTE', 'GET')} {route}`"] in [row[:1] for row in rows("HTTP")]


@pytest.mark.parametrize("name", found(r'= (?:Counter|Gauge|Histogram|Info)\("(\w+)"', "serving/metrics.py"))
def test_every_metric_is_in_the_table_and_is_served(name, served):
    [metric] = [row[0].strip("`") for row in rows("Metrics") if re.fullmatch(rf"`{name}(_total|_info)?`", row[0])]
    assert f"\n# TYPE {metric} " in served.get("/metrics").text


@pytest.mark.parametrize("script", [name for name, source in SOURCES.items() if "ArgumentParser(" in source])
def test_every_option_of_every_command_is_named(script):
    help_text = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_text.stdout)) - {"--help"}
    assert options
    assert {option for option in options if not re.search(rf"{option}\b(?!-)", README)} == set()


# -- troubleshooting -------------------------------------------------------------------------------------------------
def messages(path):
    """Return every text in a file, with `…` for each value that is put into one."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return [source]
    parts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr | ast.Constant)]
    return [
        "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in getattr(node, "values", [node]))
        for node in parts
    ]


PLACES = [*SOURCES, "Makefile", f"{PIPELINES}/pre-deployment.yml"]
MESSAGES = {name: messages(ROOT / name) for name in PLACES}


QUOTED = [text for row in rows("Troubleshooting") for text in re.findall(r"`([^`]+)`", row[1])]


@pytest.mark.parametrize("quoted", QUOTED)
def test_every_message_that_is_quoted_is_one_of_ours(quoted):
    pieces = [piece.strip() for piece in quoted.split("…") if piece.strip()]
    assert pieces
    assert any(all(piece in "\n".join(texts) for piece in pieces) for texts in MESSAGES.values()), pieces


# -- links and pictures ----------------------------------------------------------------------------------------------
def test_every_link_and_picture_leads_somewhere():
    headings = re.findall(r"^#+ (.+)$", PROSE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert links
    assert set(links) <= anchors
    pictures = re.findall(r'src="([^"]+)"', README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


@pytest.mark.parametrize("diagram", [block for language, block, _ in BLOCKS if language == "mermaid"], ids=named)
def test_no_box_of_a_diagram_has_a_name_that_mermaid_keeps_for_itself(diagram):
    text = re.sub(r'"[^"]*"|\[[^\]]*\]', "", diagram)
    boxes = re.findall(r"(?:-->|&|^) *([\w.]+)", text, re.MULTILINE)
    assert boxes
    assert not {"class", "classDef", "click", "default", "graph", "linkStyle", "style"} & set(boxes)
