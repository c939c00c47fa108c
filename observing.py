"""What the person on call sees: metrics for Prometheus, and one line in the log for every request.

    curl http://127.0.0.1:8000/metrics

server.py serves the one and calls `record` for the other.
"""

import json
import logging
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge, Histogram, Info

from workers import WorkQueue

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

REQUESTS = Counter("classifier_requests", "Requests answered, by status", ["status"])
QUEUE_SECONDS = Histogram("classifier_queue_seconds", "Time that a call waited for a thread", buckets=SECONDS)
DECODE_SECONDS = Histogram("classifier_decode_seconds", "Time to decode and resize a call's pictures", buckets=SECONDS)
MODEL_SECONDS = Histogram("classifier_model_seconds", "Time that the model took for a call", buckets=SECONDS)
IN_WORK = Gauge("classifier_in_work", "Calls being worked on")
QUEUED = Gauge("classifier_queued", "Calls waiting for a thread")
MODEL = Info("classifier_model", "The model and the execution provider in use")

logger = logging.getLogger("server")


@dataclass
class Seen:
    """What is known of a request by the time that it is answered; times in milliseconds."""

    id: str
    method: str
    path: str
    status: int
    bytes: int
    total_ms: float
    pictures: list[str] = field(default_factory=list)
    queue_ms: float | None = None
    decode_ms: float | None = None
    model_ms: float | None = None


def watch(queue: WorkQueue) -> None:
    """Show the queue's numbers as gauges."""
    IN_WORK.set_function(lambda: queue.in_work)
    QUEUED.set_function(lambda: queue.queued)


def record(seen: Seen) -> None:
    """Count a request, and write its line."""
    REQUESTS.labels(str(seen.status)).inc()
    for histogram, milliseconds in (
        (QUEUE_SECONDS, seen.queue_ms),
        (DECODE_SECONDS, seen.decode_ms),
        (MODEL_SECONDS, seen.model_ms),
    ):
        if milliseconds is not None:
            histogram.observe(milliseconds / 1e3)
    fields = {name: value for name, value in asdict(seen).items() if value not in (None, [])}
    logger.info("request", extra={"fields": fields})


class LineFormatter(logging.Formatter):
    """One line an event, as text or as a JSON object; line breaks in either are escaped."""

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
        values = [fields.pop("time"), fields.pop("level"), fields.pop("event").replace("\n", "\\n")]
        return " ".join(values + [f"{name}={self._text(value)}" for name, value in fields.items()])

    @staticmethod
    def _text(value: object) -> str:
        # Quoted wherever a caller's text could break the line or pass for another field.
        plain = isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value
        return str(value) if plain else json.dumps(value)


def log_to_stderr(as_json: bool) -> None:
    """Send every log line there, this server's own from INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(as_json))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logger.setLevel(logging.INFO)
