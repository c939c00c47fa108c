"""The log: one line an event on stderr, as text or as JSON.

Whoever has something to say uses `logger`, with what belongs to it as `extra={"fields": {...}}`.
"""

import json
import logging
import os
import select
import sys
from contextlib import suppress
from datetime import UTC, datetime

logger = logging.getLogger("server")


class LineFormatter(logging.Formatter):
    """One line an event, as text or as a JSON object; what is not printable is escaped in either."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self.as_json:
            return json.dumps(fields)
        event = "".join(c if c.isprintable() else repr(c)[1:-1] for c in fields.pop("event"))
        values = [fields.pop("time"), fields.pop("level"), event]
        return " ".join(values + [f"{name}={self._text(value)}" for name, value in fields.items()])

    @staticmethod
    def _text(value: object) -> str:
        # Quoted wherever a caller's text could break the line or pass for another field.
        plain = isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value
        return str(value) if plain else json.dumps(value)


class DroppingHandler(logging.Handler):
    """Writes to a file descriptor what it takes without waiting: a line may be lost or cut short, a request may not.

    A pipe that nobody reads is full after a few hundred lines.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        line = self.format(record).encode(errors="backslashreplace") + b"\n"
        for start in range(0, len(line), select.PIPE_BUF):  # what a pipe with room takes at once
            if not self._poll.poll(0):
                return
            with suppress(OSError):  # nobody is left to read it
                os.write(self._descriptor, line[start : start + select.PIPE_BUF])


def log_to_stderr(as_json: bool) -> None:
    """Send every log line there, this server's own from INFO on."""
    handler = DroppingHandler(sys.stderr.fileno())
    handler.setFormatter(LineFormatter(as_json))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logger.setLevel(logging.INFO)
