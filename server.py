"""Serve a classifier over HTTP.

    python server.py                      # http://127.0.0.1:8000
    PORT=9000 BANANA_API_KEY=secret python server.py

Starts loading the model, then the server of serving/routes.py, which needs as long and leaves a CPU idle meanwhile.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import app
from runtime import memory
from runtime.settings import choice, integer
from serving.log import log_to_stderr, logger

# -- settings, from the environment --------------------------------------------------------------------------------
HOST = os.environ.get("HOST") or "0.0.0.0"  # the address to listen on
PORT = integer("PORT", 8000, 1, 65_535)
LOG_FORMAT = choice("LOG_FORMAT", "text", ("text", "json"))
# BANANA_API_KEY, CORS_ORIGIN and the limits of requests are in serving/routes.py; what is about the model is in app.py.
# ------------------------------------------------------------------------------------------------------------------


def yield_less() -> None:
    """Let a thread that wakes up wait for its turn: one that it would interrupt loses what its CPU's caches hold."""
    if not hasattr(os, "SCHED_BATCH"):  # which Linux alone has
        return
    try:
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # else somebody has chosen another
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        logger.info("scheduled as usual", extra={"fields": {"reason": error.strerror}})


def main() -> None:
    """Serve until SIGTERM; exit 1 if the model cannot be loaded, or if work was left unfinished."""
    if sys.argv[1:] not in ([], ["serve"]):  # which is what SageMaker passes
        sys.exit("usage: python server.py [serve]; README.md has the settings, which are environment variables")
    log_to_stderr(LOG_FORMAT == "json")
    yield_less()
    memory.return_large()
    loading = ThreadPoolExecutor(1, "load").submit(app.init)
    from serving.routes import serve

    try:
        sys.exit(serve(HOST, PORT, loading))
    except OSError as error:
        sys.exit(f"server.py: cannot listen on {HOST}:{PORT}: {error.strerror}")


if __name__ == "__main__":
    main()
