"""startup_errors.py: an old Python, a missing package and Ctrl-C during an import end a script with a sentence."""

import subprocess
import sys

import pytest

from tests.server_process import ROOT

SCRIPTS = ["convert_to_onnx.py", "pytorch_model.py", "test_onnx.py", "test_server.py"]


def run(*command):
    result = subprocess.run([sys.executable, *command], cwd="/", capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


def run_after(script, statements):
    """Run the script in a Python where the statements came first."""
    whole = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = {script!r}; {statements}"
    return run("-c", f"{whole}; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')")


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_old_python_is_named_with_the_one_that_is_needed(script):
    code, says = run_after(script, "sys.version_info = (3, 9, 2); sys.version = '3.9.2 (main)'")
    assert code == 1
    assert says.startswith("Python 3.11 or later is needed, this is 3.9.2: ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_package_is_named_with_what_installs_it(script):
    code, says = run("-S", ROOT / script)  # without site-packages
    assert code == 1
    assert says.startswith(f"{script}: No module named '")
    assert f"pip install -r {ROOT / 'requirements.txt'}\n" in says
    assert (f"pip install -r {ROOT / 'requirements/client.txt'}" in says) == (script == "test_server.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_an_import_is_exit_code_130(script):
    find = "lambda name, *_: name in ('client', 'torch') and signal.raise_signal(2) or None"
    finder = f"type('Finder', (), {{'find_spec': {find}}})"
    statements = f"import signal; sys.meta_path.insert(0, {finder})"
    assert run_after(script, statements) == (130, f"{script}: interrupted\n")


def test_any_other_error_has_its_traceback():
    command = [sys.executable, "-c", "import runtime.startup_errors; 1 / 0"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr
