"""The log: one line per event on stderr, as text or JSON. An event's fields are `extra={"fields": {...}}`."""

import json
import logging
import os
import re
import select
import sys
from contextlib import suppress
from datetime import UTC, datetime

logger = logging.getLogger("server")
logger.setLevel(logging.INFO)  # other loggers write only warnings and errors


def start_log(log_format: str) -> None:
    """Write all events from now on, as `text` or as `json`."""
    if sys.stderr is None:  # closed, as by `2>&-`: without this, a socket would become the new stderr
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    logging.basicConfig(handlers=[LineHandler(log_format == "json")])


class LineHandler(logging.Handler):
    """Writes each event to stderr as one line, of text or a JSON object, with unprintable characters escaped.

    It never waits: when a pipe that is not read is full, lines are lost or cut short, but requests are processed.
    """

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level, event = record.levelname.lower(), record.getMessage()
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = logging.Formatter().formatException(record.exc_info)
        if self.as_json:
            return json.dumps({"time": time, "level": level, "event": event} | fields)
        words = [time, level, "".join(c if c.isprintable() else repr(c)[1:-1] for c in event)]
        for name, value in fields.items():
            # Quoted if a client's text could break the line or pass for another field.
            plain = type(value) in (int, float) or (isinstance(value, str) and re.fullmatch("[!-~]*", value))
            words.append(f"{name}={value if plain else json.dumps(value)}")
        return " ".join(words)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        line = self.format(record).encode(errors="backslashreplace") + b"\n"
        stderr = sys.stderr.fileno()
        with suppress(OSError):  # the reader is gone
            while line and select.select([], [stderr], [], 0)[1]:
                written = os.write(stderr, line[: select.PIPE_BUF])  # what a pipe with room accepts at once
                line = line[written:]
