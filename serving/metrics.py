"""What the person on call sees: metrics for Prometheus, and one line in the log for every request.

routes.py serves the one and calls `record` for the other.
"""

from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge, Histogram, Info

from serving.log import logger
from serving.work_queue import WorkQueue

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

REQUESTS = Counter("classifier_requests", "Requests answered, by status", ["status"])
QUEUE_SECONDS = Histogram("classifier_queue_seconds", "Time that a call waited for a thread", buckets=SECONDS)
DECODE_SECONDS = Histogram("classifier_decode_seconds", "Time to decode and resize a call's pictures", buckets=SECONDS)
MODEL_SECONDS = Histogram("classifier_model_seconds", "Time that the model took for a call", buckets=SECONDS)
IN_WORK = Gauge("classifier_in_work", "Calls being worked on")
QUEUED = Gauge("classifier_queued", "Calls waiting for a thread")
MODEL = Info("classifier_model", "The model and the execution provider in use")


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
    fields = {name: value for name, value in vars(seen).items() if value not in (None, [])}
    logger.info("request", extra={"fields": fields})
