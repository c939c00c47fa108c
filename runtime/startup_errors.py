"""Imported first by every script: an old Python, a missing package and Ctrl-C end it with a sentence.

Nothing here may be newer than Python 3.6: an older one would end in a traceback before the sentence.
"""

import os
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  this is what says so
    sys.exit(f"Python 3.11 or later is needed, this is {sys.version.split()[0]}: type python3.11 in place of python")


def excepthook(kind, error, traceback):  # type: ignore[no-untyped-def]
    """End the program: it is `sys.excepthook`."""
    script = Path(sys.argv[0]).name
    if issubclass(kind, KeyboardInterrupt):
        print(f"{script}: interrupted", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # the shells' own, 128 + SIGINT; to return would be to wait for threads that are at work
    if not issubclass(kind, ModuleNotFoundError):
        return sys.__excepthook__(kind, error, traceback)
    install = f"{sys.executable} -m pip install -r {Path(__file__).resolve().parent.parent / 'requirements'}"
    print(f"{script}: {error}. Type: {install}.txt", file=sys.stderr)
    if script == "test_server.py":
        print(f"To call an endpoint elsewhere this is enough: {install}/client.txt", file=sys.stderr)


sys.excepthook = excepthook
