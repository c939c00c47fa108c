"""One-line errors in place of tracebacks: an old Python, a missing package, Ctrl-C. Every script imports it first.

Nothing here may need more than Python 3.6: an older one would print a traceback before the message.
"""

import os
import sys


def exit_interrupted():  # type: ignore[no-untyped-def]
    """Exit at once with the shell's code for SIGINT; a normal exit would wait for threads that are still running."""
    print(f"{sys.argv[0].rpartition(os.sep)[2]}: interrupted", file=sys.__stderr__)  # whatever redirects sys.stderr
    sys.stdout.flush()
    os._exit(130)


def excepthook(kind, error, traceback):  # type: ignore[no-untyped-def]
    """Report the exception that ends the program (`sys.excepthook`)."""
    script = sys.argv[0].rpartition(os.sep)[2]
    if issubclass(kind, KeyboardInterrupt):
        exit_interrupted()
    elif not issubclass(kind, ModuleNotFoundError):
        sys.__excepthook__(kind, error, traceback)
    elif is_outside_venv():
        print(f"{script}: {error}: activate .venv with: . {quote(str(ACTIVATE))}", file=sys.stderr)
    else:
        pip, all_of_it = f"{quote(sys.executable)} -m pip install -r", quote(str(ROOT / "requirements.txt"))
        print(f"{script}: {error}: install the packages with: {pip} {all_of_it}", file=sys.stderr)
        if script == "test_server.py":
            client = quote(str(ROOT / "requirements" / "client.txt"))
            print(f"To call an existing endpoint, this is enough: {pip} {client}", file=sys.stderr)


sys.excepthook = excepthook  # before the next imports, which Ctrl-C may interrupt

import signal
import threading
from pathlib import Path
from shlex import quote

ROOT = Path(__file__).resolve().parent.parent
ACTIVATE = ROOT / ".venv" / "bin" / "activate"


def is_outside_venv():  # type: ignore[no-untyped-def]
    """Return whether the repository has a virtual environment that this Python does not belong to."""
    return ACTIVATE.exists() and not ACTIVATE.parent.samefile(Path(sys.executable).parent)


def on_interrupt(number, frame):  # type: ignore[no-untyped-def]
    """Raise KeyboardInterrupt, or exit at once during an import, which may drop or replace that exception."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            exit_interrupted()
        frame = frame.f_back
    raise KeyboardInterrupt


if sys.version_info < (3, 11):  # noqa: UP036  an older Python is what this reports
    advice = f"activate .venv with: . {quote(str(ACTIVATE))}" if is_outside_venv() else "run it with python3.11"
    sys.exit(f"Python 3.11 or later is required, this is {sys.version.split()[0]}: {advice}")

# A background job ignores SIGINT and must keep doing so; pytest handles it; only the main thread may set a handler.
has_default_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler and "pytest" not in sys.modules
if has_default_handler and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, on_interrupt)
