"""README.md and docs/ are followed as a newcomer follows them: commands run, outputs compared, references checked.

Commands of tools that are not here run against the stand-ins of tests/fake_tools.py, which check their arguments.
"""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from PIL import Image

from client.endpoint import free_port
from examples.colors import COLORS
from model import OnnxClassifier
from tests import fake_tools, generate_docs
from tests.server_process import DEADLINE_S, ROOT, wait_until

PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
NOT_CLONED = (".git", ".venv*", ".make", "*cache*", ".hypothesis", "*.onnx", "*.pth", "photos", "reports")
FOLDERS = (".", "conversion", "runtime", "serving", "client", "deploy")
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
}

# -- the commands ----------------------------------------------------------------------------------------------------
TEXT = "\n".join(PAGES.values())
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n*^```(?:text|json)\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
BLOCKS = [(name, *block) for name, page in PAGES.items() for block in BLOCK.findall(page)]
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
# In the running text or in a table: settings, and then one of these.
INLINE = re.findall(r"`((?:[A-Z_]+=\S+ )*(?:(?:make|python|docker|pip|curl|kubectl) [^`]+|\.ci/run))`", PROSE)
SERVERS = re.compile(r"([A-Z_]+=\S+ )*(make serve|python server.py)")
CONVERTER = re.compile(r"python convert_to_onnx.py(.*)")


def commands(block):
    """Return a block's commands; a continued line is one."""
    return block.replace("\\\n", " ").splitlines()


def short(block):
    """Return a test id for a block."""
    return re.sub(r"\s+", " ", block)[:50].strip()


@pytest.fixture
def checkout(tmp_path):
    """Give a fresh clone, as it is after `make` has set it up."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*NOT_CLONED))
    for name in ("classifier.onnx", "colors.onnx"):
        (clone / name).symlink_to(ROOT / "classifier.onnx")
    (clone / ".venv").symlink_to(sys.prefix)
    fake_tools.install(tmp_path / "tools")
    return clone


def environment(checkout, **more):
    """Return a newcomer's environment: nothing is set for this repository."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("BANANA_", "MAKE", "MODEL"))}
    path = [str(checkout.parent / "tools"), str(Path(sys.executable).parent), os.environ["PATH"]]
    return clean | {"PATH": os.pathsep.join(path)} | more


def follow(command, checkout, port, parse_only=True, **settings):
    """Run a page's command, with `port` in place of 8000; return what it prints.

    With `parse_only`, the converter only checks its options: tests/test_convert_to_onnx.py converts.
    """
    if SERVERS.fullmatch(command):
        return serve(command, checkout)
    if tests := re.fullmatch(r"python -m pytest (tests/\w+\.py)", command):  # `make test` runs them
        assert (checkout / tests[1]).is_file()
        return ""
    if parse_only and (converter := CONVERTER.fullmatch(command)):
        parse = "import convert_to_onnx; convert_to_onnx.parse_args()"
        command = f"{shlex.quote(sys.executable)} -c {shlex.quote(parse)}{converter[1]}"
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("FOLDER", "images")
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=checkout,
        env=environment(checkout, **settings),
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def serve(command, checkout):
    """Run a command that serves until Ctrl-C: interrupt it once it is healthy."""
    port, log = free_port(), checkout / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=checkout,
            env=environment(checkout, PORT=str(port)),
            stderr=output,
            start_new_session=True,
        )

    def is_healthy():
        assert process.poll() is None, log.read_text()
        # Before this line, Ctrl-C ends it at once.
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


def test_every_block_names_its_language():
    assert not re.search(r"^    \S", PROSE, re.MULTILINE)
    # An output follows its command; a listing stands by itself.
    assert {language for _, language, _, _ in BLOCKS} <= {"mermaid", "sh", "python", "promql", "text", "toml", "yaml"}
    assert "```" not in PROSE


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        pytest.param(block, shown, id=f"{page}: {short(block)}")
        for page, language, block, shown in BLOCKS
        # tests/test_install.py follows the section "Without make".
        if language == "sh" and "examples/colors.py" not in block and "-m venv" not in block
    ],
)
def test_block_of_commands_prints_what_is_shown(block, shown, checkout, served):
    exports, printed = {}, ""
    for command in commands(block):
        if command.startswith("export "):
            command = command.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}")
            exports |= dict(setting.split("=", 1) for setting in shlex.split(command)[1:])
        else:
            printed = follow(command, checkout, served.port, **exports)
    assert re.fullmatch(as_shown(shown), plain(printed)) or not shown, printed


@pytest.mark.parametrize("command", sorted(set(INLINE)))
def test_command_in_the_text_works(command, checkout, served):
    follow(command, checkout, served.port)


@pytest.mark.parametrize(
    ("code", "shown"), [(code, shown) for _, kind, code, shown in BLOCKS if kind == "python" and shown]
)
def test_code_prints_what_is_shown(code, shown, checkout, served):
    model = OnnxClassifier(ROOT / "classifier.onnx").model_name
    code = code.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}").replace("efficientnet-lite0", model)
    result = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(as_shown(shown), plain(result.stdout))


def test_readme_quotes_inference_as_it_is():
    [quoted] = [code for page, kind, code, _ in BLOCKS if page == "README.md" and code.startswith("def inference(")]
    assert quoted in SOURCES["app.py"]


def test_example_model_is_converted_and_served(checkout):
    [(block, shown)] = [(block, shown) for _, _, block, shown in BLOCKS if "examples/colors.py" in block]
    (checkout / "colors.onnx").unlink()
    for command in commands(block):
        printed = follow(command, checkout, free_port(), parse_only=False)
    assert re.fullmatch(as_shown(shown), plain(printed)), printed

    classifier = OnnxClassifier(checkout / "colors.onnx")
    for right, left in enumerate(COLORS):
        image = Image.new("RGB", (128, 96), tuple(int(255 * level) for level in left))
        image.paste(tuple(int(255 * level) for level in COLORS[right - 1]), (64, 0, 128, 96))
        first, second, third = classifier.top(classifier.predict(classifier.preprocessor(image)[None])[0], 3)
        assert {first["class_id"], second["class_id"]} == {right, (right - 1) % 5}
        assert second["probability"] > 0.5 > third["probability"]


# -- the reference ---------------------------------------------------------------------------------------------------
def found(pattern, *names):
    """Return what `pattern` finds in the named files; an empty set would prove nothing."""
    matches = {match for name in names for match in re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"))}
    assert matches
    return sorted(matches)


def test_tables_of_settings_are_up_to_date():
    page = PAGES["configuration.md"]
    assert generate_docs.render(page) == page, "run: python -m tests.generate_docs"


@pytest.mark.parametrize("name", found(r"(?m)^([A-Z_]+) \?=", "Makefile"))
def test_every_make_variable_is_in_configuration(name):
    assert f"`{name}`" in PAGES["configuration.md"].partition("## make\n")[2]


@pytest.mark.parametrize(
    ("method", "route"), found(r'@\w+\.(route|post)\("((?!/page/)[^"]+)"', "server.py", "serving/open_inference.py")
)
def test_every_route_is_in_http_api(method, route):
    assert f"| `{method.upper().replace('ROUTE', 'GET')} {route}` |" in PAGES["http-api.md"]


@pytest.mark.parametrize("name", found(r'(?:Counter|Gauge|histogram|Info)\(\s*"(\w+)"', "serving/metrics.py"))
def test_every_metric_is_documented_and_served(name, served):
    [metric] = re.findall(rf"^\| `({name}(?:_total|_info)?)` \|", PAGES["operations.md"], re.MULTILINE)
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


@pytest.mark.parametrize("quoted", re.findall(r"^> `(.+)`$", PAGES["operations.md"], re.MULTILINE))
def test_every_quoted_message_is_one_of_ours(quoted):
    pieces = [piece.strip() for piece in quoted.split("…") if piece.strip()]
    assert pieces
    assert any(all(piece in "\n".join(texts) for piece in pieces) for texts in MESSAGES.values()), pieces


# -- links -----------------------------------------------------------------------------------------------------------
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


def test_every_page_is_linked_from_the_readme():
    assert set(re.findall(r"\]\(docs/([\w-]+\.md)", PAGES["README.md"])) == set(PAGES) - {"README.md"}
