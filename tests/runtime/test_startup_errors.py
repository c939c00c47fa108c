"""startup_errors.py: an old Python, a missing package and Ctrl-C end a script with one line."""

import subprocess
import sys
from shlex import quote

import pytest

from tests.server_process import ROOT

SCRIPTS = ["convert_to_onnx.py", "pytorch_model.py", "server.py", "test_onnx.py", "test_server.py"]


def run(*command):
    result = subprocess.run([sys.executable, *command], cwd="/", capture_output=True, text=True, timeout=60)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


def run_after(script, statements):
    """Run the script in a Python that has executed the statements first."""
    whole = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = {script!r}\n{statements}"
    return run("-c", f"{whole}\nrunpy.run_path({str(ROOT / script)!r}, run_name='__main__')")


@pytest.fixture
def script(tmp_path):
    """A script that needs a missing package, in a repository whose path has a space."""
    root = tmp_path / "a clone"
    (root / "runtime").mkdir(parents=True)
    (root / "runtime/startup_errors.py").write_bytes((ROOT / "runtime/startup_errors.py").read_bytes())
    (root / "script.py").write_text("import runtime.startup_errors\nimport missing_package\n")
    return root / "script.py"


@pytest.mark.parametrize("script", SCRIPTS)
def test_old_python_is_reported(script):
    code, error = run_after(script, "sys.version_info = (3, 9, 2); sys.version = '3.9.2 (main)'")
    assert code == 1
    assert error.startswith("Python 3.11 or later is required, this is 3.9.2: ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_package_is_reported_by_every_script(script):
    code, error = run("-S", ROOT / script)  # without site-packages
    assert code == 1
    assert error.startswith(f"{script}: No module named '")


def test_missing_package_is_reported_with_how_to_install(script):
    requirements = script.with_name("requirements.txt")
    assert run(script)[1].endswith(f"{quote(sys.executable)} -m pip install -r '{requirements}'\n")
    tester = script.rename(script.with_name("test_server.py"))
    assert run(tester)[1].endswith(
        f"{quote(sys.executable)} -m pip install -r '{requirements.parent}/requirements/client.txt'\n"
    )


@pytest.mark.parametrize("statements", ["", "sys.version_info = (3, 9, 2); sys.version = '3.9.2 (main)'"])
def test_python_outside_venv_is_told_to_activate_it(script, statements):
    activate = script.with_name(".venv") / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    code, error = run(
        "-c",
        f"import runpy, sys\n{statements}\nsys.path.insert(0, {str(script.parent)!r})\nrunpy.run_path({str(script)!r})",
    )
    assert code == 1
    assert error.endswith(f": . '{activate}'\n")
    assert "pip" not in error


FINDER = """
import signal
class Finder:
    def find_spec(name, *_):
        try:
            if name in ('app', 'client', 'torch'):
                signal.raise_signal(signal.SIGINT)
        except {dropped}:
            pass
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("dropped", ["()", "KeyboardInterrupt"])  # by the import, as some of Python's callbacks do
def test_ctrl_c_during_an_import_exits_with_130(script, dropped):
    assert run_after(script, FINDER.format(dropped=dropped)) == (130, f"{script}: interrupted\n")


@pytest.mark.parametrize("module", ["benchmarks.bench", "benchmarks.precision", "server"])
def test_ctrl_c_while_running_cleans_up_and_exits_with_130(module):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'x.py'; import signal, {module}"
    code += "\ntry: signal.raise_signal(signal.SIGINT)\nfinally: print('cleaned up', file=sys.stderr)"
    assert run("-c", code) == (130, "cleaned up\nx.py: interrupted\n")


def test_ignored_ctrl_c_stays_ignored():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    code += "\nimport runtime.startup_errors\nsignal.raise_signal(signal.SIGINT)"
    assert run("-c", code) == (0, "")


def test_other_errors_keep_their_traceback():
    command = [sys.executable, "-c", "import runtime.startup_errors; 1 / 0"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr


def test_ctrl_c_is_reported_while_stderr_is_redirected():
    code = (
        "import contextlib, io, runtime.startup_errors as errors\n"
        "with contextlib.redirect_stderr(io.StringIO()): errors.excepthook(KeyboardInterrupt, None, None)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (130, "-c: interrupted\n")
