"""What the person on call sees: metrics for Prometheus, and one line in the log for every request.

server.py serves the one and calls `record` for the other.
"""

from prometheus_client import Counter, Gauge, Histogram, Info

from serving.log import logger
from serving.work_queue import WorkQueue

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

REQUESTS = Counter("classifier_requests", "Requests answered, by status", ["status"])
REQUEST_SECONDS = Histogram(
    "classifier_request_seconds", "Time to answer a request", ["route", "status"], buckets=(*SECONDS, 30, 60)
)
QUEUE_SECONDS = Histogram("classifier_queue_seconds", "Time that a call waited for a thread", buckets=SECONDS)
DECODE_SECONDS = Histogram("classifier_decode_seconds", "Time to decode and resize a call's images", buckets=SECONDS)
MODEL_SECONDS = Histogram("classifier_model_seconds", "Time that the model took for a call", buckets=SECONDS)
IN_WORK = Gauge("classifier_in_work", "Calls being worked on")
QUEUED = Gauge("classifier_queued", "Calls waiting for a thread")
MODEL = Info("classifier_model", "The model and the execution provider in use")


def watch(queue: WorkQueue) -> None:
    """Show the queue's numbers as gauges."""
    IN_WORK.set_function(lambda: queue.in_work)
    QUEUED.set_function(lambda: queue.queued)


def record(route: str, request: dict, queued_s: float | None, answer: dict) -> None:
    """Count a request, and write its line: what is known of it, the seconds that it waited, and what its answer says.

    `route` has a few values. A request that was refused has waited for nothing, and has an empty answer.
    """
    REQUESTS.labels(str(request["status"])).inc()
    REQUEST_SECONDS.labels(route, str(request["status"])).observe(request["total_ms"] / 1e3)
    timing = answer.get("timing_ms", {})
    milliseconds = {
        "queue_ms": None if queued_s is None else round(queued_s * 1e3, 1),
        "decode_ms": timing.get("decode"),
        "model_ms": timing.get("model"),
    }
    for histogram, value in zip((QUEUE_SECONDS, DECODE_SECONDS, MODEL_SECONDS), milliseconds.values(), strict=True):
        if value is not None:
            histogram.observe(value / 1e3)
    images = [result["image"] for result in answer.get("results", [answer]) if "image" in result]
    shown = [f"{image['format']} {image['width']}x{image['height']}" for image in images]
    fields = request | {"pictures": shown or None} | milliseconds
    logger.info("request", extra={"fields": {name: value for name, value in fields.items() if value is not None}})
