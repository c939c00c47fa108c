"""README.md and docs/ are followed as a newcomer follows them: commands are run, outputs compared, references held."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from client.endpoint import free_port
from examples.colors import COLORS, Colors
from model import OnnxClassifier
from tests import generate_docs
from tests.server_process import DEADLINE_S, ROOT, wait_until

PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MADE = (".git", ".venv*", ".make", "*cache*", ".hypothesis", "*.onnx", "*.pth", "photos", "reports")  # not in a clone
SCRIPTS = [*ROOT.glob("*.py"), *(ROOT / "conversion").glob("*.py"), *(ROOT / "runtime").glob("*.py")]
SCRIPTS += [*(ROOT / "serving").glob("*.py"), *(ROOT / "client").glob("*.py"), *(ROOT / "deploy").glob("*.py")]
SOURCES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in SCRIPTS}

# -- the commands ----------------------------------------------------------------------------------------------------
TEXT = "\n".join(PAGES.values())
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n*^```(?:text|json)\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
BLOCKS = [(name, *block) for name, page in PAGES.items() for block in BLOCK.findall(page)]
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
# Those in the running text, or in a table: the environment, and then one of these.
INLINE = re.findall(
    r"`((?:[A-Z_]+=\S+ )*(?:(?:make|python|docker|pip|curl|kubectl|\.venv-ray/bin/\w+) [^`]+|\.ci/run))`", PROSE
)

# What cannot be run here, and which file runs the same or has it: a pipeline, a test, or what a person runs.
PIPELINE = ".github/workflows/pre-deployment.yml"
ELSEWHERE = {
    "make test": (".ci/run", "make test"),
    ".ci/run": (PIPELINE, "run: .ci/run"),
    "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make run": (
        PIPELINE,
        "PIP_EXTRA_INDEX_URL: https://download.pytorch.org/whl/cpu",
    ),
    "python convert_to_onnx.py --model efficientnet-lite0": ("Makefile", "convert_to_onnx.py --model $(MODEL)"),
    "docker build --build-arg MODEL=auto --tag classifier:cpu .": (
        "Makefile",
        "docker build --build-arg TARGET=$(TARGET) --build-arg MODEL=$(MODEL)",
    ),
    "docker run --rm --publish 8000:8000 --env BANANA_API_KEY=a-key-of-yours classifier:cpu": (
        "Makefile",
        "docker run --rm --read-only",
    ),
    "docker build --build-arg TARGET=gpu --tag classifier:gpu .": (
        PIPELINE,
        "docker build --build-arg MODEL --build-arg TARGET --tag classifier",
    ),
    # Without --gpus: none of these machines has one.
    "docker run --rm --gpus all --publish 8000:8000 --env BANANA_API_KEY=a-key-of-yours classifier:gpu": (
        PIPELINE,
        "docker run --detach",
    ),
    "sed 's|IMAGE|registry.example/classifier:1.0.0|' deploy/knative.yaml | kubectl apply -f -": (
        "tests/test_knative.py",
        "knative.yaml",
    ),
    "kubectl create secret generic classifier --from-literal=api-key=…": ("deploy/knative.yaml", "key: api-key"),
    "pip install 'tritonclient[http]'": ("requirements/dev.txt", "tritonclient[http]=="),
    "pip install -r requirements/client.txt": ("tests/test_install.py", "pip install -r requirements/client.txt"),
    ".venv-ray/bin/ray start": ("requirements/ray.txt", "ray[serve]=="),
    ".venv-ray/bin/serve shutdown": ("requirements/ray.txt", "ray[serve]=="),
    "MODEL_PATH=colors.onnx python server.py": ("client/endpoint.py", "command = [sys.executable, "),
    "python -m benchmarks.precision FOLDER": ("benchmarks/precision.py", "python -m benchmarks.precision FOLDER"),
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
    """Do what a page says, asking the server at `port` where it says 8000; return what is printed."""
    if command in ELSEWHERE:
        name, same = ELSEWHERE[command]
        assert same in (ROOT / name).read_text(encoding="utf-8")
        return ""
    if command in SERVING:
        return serve(command, checkout)
    if tests := re.fullmatch(r"python -m pytest (tests/\w+\.py)", command):  # `make test` runs them
        assert (checkout / tests[1]).is_file()
        return ""
    dry = "--dry-run" if re.match(r"make (?!run( IMAGE=|$))", command) else ""
    for name in re.findall(r"^make .*?([A-Z_]+)=", command):
        assert re.search(rf"\b{name}\b", MAKEFILE + "".join(SOURCES.values()))
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
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
    """Return a pattern of what a page shows: any number for a number, any spaces, anything for `…`."""
    text = text.replace("efficientnet-lite0", OnnxClassifier(ROOT / "classifier.onnx").model_name)
    return re.escape(plain(text)).replace("…", ".*")


def plain(text):
    """Return the text without spaces, and with every number alike."""
    return re.sub(r"\s+", "", re.sub(r"\d+(\.\d+)?(e-\d+)?", "0", text))


def test_every_block_says_what_it_is():
    assert not re.search(r"^    \S", PROSE, re.MULTILINE)
    # An output follows its command, and a tree or a help text stands by itself.
    assert {language for _, language, _, _ in BLOCKS} == {"mermaid", "sh", "python", "promql", "text", "toml", "yaml"}
    assert "```" not in PROSE


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        pytest.param(block, shown, id=f"{page}: {named(block)}")
        for page, language, block, shown in BLOCKS
        if language == "sh" and "colors" not in block and "-m venv" not in block  # tests/test_install.py has that
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
    assert command in INLINE or command in [line for _, _, block, _ in BLOCKS for line in commands(block)]


@pytest.mark.parametrize(("code", "shown"), [(code, shown) for _, kind, code, shown in BLOCKS if kind == "python"])
def test_the_code_works_and_prints_what_is_shown(code, shown, checkout, served):
    model = OnnxClassifier(ROOT / "classifier.onnx").model_name
    code = code.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}").replace("efficientnet-lite0", model)
    result = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(as_shown(shown), plain(result.stdout))


def test_ones_own_model_is_deployed_by_the_readmes_commands(checkout):
    [(block, shown)] = [(block, shown) for _, _, block, shown in BLOCKS if "examples/colors.py" in block]
    printed = [follow(command, checkout, free_port()) for command in commands(block)]
    assert re.fullmatch(as_shown(shown), plain(printed[-1]))
    assert all(f"examples/trained/{name}" in printed[0] for name in ("colors.pth", "red.png"))

    classifier = OnnxClassifier(checkout / "colors.onnx")
    assert classifier.class_names == ["red", "green", "blue", "yellow", "gray"]
    network = Colors().eval()
    network.load_state_dict(torch.load(checkout / "examples/trained/colors.pth"))
    for right, left in enumerate(COLORS):
        picture = Image.new("RGB", (128, 96), tuple(int(255 * level) for level in left))
        picture.paste(tuple(int(255 * level) for level in COLORS[right - 1]), (64, 0, 128, 96))
        first, second, third = classifier.top(classifier.predict(classifier.preprocessor(picture)[None])[0], 3)
        assert {first["class_id"], second["class_id"]} == {right, (right - 1) % 5}
        assert second["probability"] > 0.5 > third["probability"]
        pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            expected = network((pixels - 0.5) / 0.5).sigmoid()[0]
        assert first["probability"] == pytest.approx(float(expected.max()), abs=1e-4)


# -- the reference ---------------------------------------------------------------------------------------------------
def found(pattern, *names):
    """Return what `pattern` finds in the named files; an empty set would prove nothing."""
    everything = {match for name in names for match in re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"))}
    assert everything
    return sorted(everything)


def test_settings_in_configuration_are_up_to_date():
    page = PAGES[generate_docs.PAGE]
    assert generate_docs.render(page) == page, "run: python -m tests.generate_docs"


@pytest.mark.parametrize("name", found(r"(?m)^([A-Z_]+) \?=", "Makefile"))
def test_every_variable_of_make_is_in_configuration(name):
    assert f"`{name}`" in PAGES["configuration.md"].partition("## make\n")[2]


@pytest.mark.parametrize(
    ("method", "route"), found(r'@\w+\.(route|post)\("((?!/page/)[^"]+)"', "server.py", "serving/platforms.py")
)
def test_every_route_is_in_http_api(method, route):
    assert f"| `{method.upper().replace('ROUTE', 'GET')} {route}` |" in PAGES["http-api.md"]


@pytest.mark.parametrize("name", found(r'= (?:Counter|Gauge|Histogram|Info)\(\s*"(\w+)"', "serving/metrics.py"))
def test_every_metric_is_in_monitoring_and_is_served(name, served):
    [metric] = re.findall(rf"^\| `({name}(?:_total|_info)?)` \|", PAGES["monitoring.md"], re.MULTILINE)
    assert f"\n# TYPE {metric} " in served.get("/metrics").text


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


MESSAGES = {path: messages(path) for path in [*map(ROOT.joinpath, SOURCES), ROOT / "Makefile"]}


QUOTED = re.findall(r"^> `(.+)`$", PAGES["troubleshooting.md"], re.MULTILINE)


@pytest.mark.parametrize("quoted", QUOTED)
def test_every_message_that_is_quoted_is_one_of_ours(quoted):
    pieces = [piece.strip() for piece in quoted.split("…") if piece.strip()]
    assert pieces
    assert any(all(piece in "\n".join(texts) for piece in pieces) for texts in MESSAGES.values()), pieces


# -- links and pictures ----------------------------------------------------------------------------------------------
def anchors_of(page):
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_and_image_leads_somewhere(name):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    targets = re.findall(r"\]\(([^)]+)\)", PAGES[name]) + re.findall(r'src="([^"]+)"', PAGES[name])
    for target in targets:
        if target.startswith(("../../actions/", "https://")):  # GitHub's own, of whichever fork this is
            continue
        file, _, anchor = target.partition("#")
        assert not file or (folder / file).is_file(), target
        assert not anchor or anchor in anchors_of(PAGES[Path(file).name if file else name]), target


@pytest.mark.parametrize("diagram", [block for _, language, block, _ in BLOCKS if language == "mermaid"], ids=named)
def test_no_box_of_a_diagram_has_a_name_that_mermaid_keeps_for_itself(diagram):
    text = re.sub(r'"[^"]*"|\[[^\]]*\]', "", diagram)
    boxes = re.findall(r"(?:-->|&|^) *([\w.]+)", text, re.MULTILINE)
    assert boxes
    assert not {"class", "classDef", "click", "default", "graph", "linkStyle", "style"} & set(boxes)
