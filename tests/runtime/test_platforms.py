"""runtime/ and client/ on Windows and macOS: neither imports nor calls of an endpoint need what only Linux has."""

import subprocess
import sys

import pytest

from tests.server_process import MODEL_PATH, ROOT, TENCH

# What CPython does not have there. A name, or "module: name".
WINDOWS = """
import builtins, ctypes, os, select, signal, sys
for module, names in {
    os: ["sched_getaffinity", "fork", "set_blocking", "geteuid", "sysconf", "killpg", "getpgid", "mkfifo", "uname"],
    signal: ["SIGHUP", "SIGKILL", "SIGUSR1", "pthread_sigmask"],
    select: ["PIPE_BUF", "poll", "epoll"],
}.items():
    for name in names:
        vars(module).pop(name, None)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
def no_library(name, *arguments, load=ctypes.CDLL, **options):
    if name is None:
        raise TypeError("bad argument type for built-in operation")
    return load(name, *arguments, **options)
ctypes.CDLL = no_library
sys.platform = "win32"
"""
MACOS = """
import os, sys
sys.platform = "darwin"
del os.sched_getaffinity
"""


def run(system, statements, *arguments):
    # The standard library and the packages come first: here they need what Linux has.
    first = (
        "import sys, runpy, banana_dev, numpy, onnxruntime, PIL.Image, requests, tqdm, pathlib, subprocess, tempfile"
    )
    code = f"{first}\n{system}\n{statements}"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("system", [WINDOWS, MACOS], ids=["windows", "macos"])
def test_endpoint_can_be_called_without_linux(served, system):
    statements = "sys.argv[0] = 'test_server.py'; runpy.run_path('test_server.py', run_name='__main__')"
    result = run(system, statements, "--url", served.url, str(TENCH))
    assert result.returncode == 0, result.stderr
    assert "tench" in result.stdout


@pytest.mark.parametrize("system", [WINDOWS, MACOS], ids=["windows", "macos"])
def test_model_can_be_run_without_linux(system):
    code = f"import model; print(model.OnnxClassifier({str(MODEL_PATH)!r}).predict)"
    result = run(system, code)
    assert result.returncode == 0, result.stderr
