"""Run test_server.py as a command."""

import os
import subprocess
import sys
from contextlib import contextmanager

from tests.server_process import ROOT


def command_line(*arguments, **environment):
    """Return the arguments of `subprocess` that run the tester."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BANANA_")}
    command = [sys.executable, ROOT / "test_server.py", *map(str, arguments)]
    return {"args": command, "cwd": ROOT, "env": clean | environment}


def run_tester(*arguments, cwd=ROOT, **environment):
    command = command_line(*arguments, **environment) | {"cwd": cwd}
    result = subprocess.run(**command, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in result.stderr
    return result


@contextmanager
def started(*arguments, **environment):
    """Run the tester while the context lasts, so that it can be read and interrupted."""
    with subprocess.Popen(
        **command_line(*arguments, **environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
