"""Metrics for Prometheus, and one log line per request."""

import re
from time import perf_counter
from uuid import uuid4

from prometheus_client import Counter, Gauge, Histogram, Info
from sanic import Request

from serving.log import logger

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

REQUESTS = Counter("classifier_requests", "Responses, by status", ["status"])
REQUEST_SECONDS = Histogram(
    "classifier_request_seconds", "Time from first byte to response", ["route", "status"], buckets=SECONDS
)
PHASES = {  # by their names in timing_ms
    "queue": Histogram("classifier_queue_seconds", "Time that a request waited for a thread", buckets=SECONDS),
    "decode": Histogram("classifier_decode_seconds", "Time to decode and resize a request's images", buckets=SECONDS),
    "model": Histogram("classifier_model_seconds", "Time that the model took for a request", buckets=SECONDS),
}
REQUESTS_IN_PROGRESS = Gauge("classifier_requests_in_progress", "Requests that are running")
REQUESTS_QUEUED = Gauge("classifier_requests_queued", "Requests that are waiting for a thread")
MODEL = Info("classifier_model", "The model and the backend in use")


def record(request: Request, status: int) -> None:
    """Count a response, and log its request with what the backend reports.

    The label `route` is the name of the function of a route that classifies, otherwise `other`; never a client's path.
    """
    classifies = request.route and request.route.extra.stream
    route = request.route.handler.__name__ if classifies else "other"
    total_ms = round((perf_counter() - (request.stream.perft0 or perf_counter())) * 1e3, 1)
    REQUESTS.labels(str(status)).inc()
    REQUEST_SECONDS.labels(route, str(status)).observe(total_ms / 1e3)
    fields = {"id": get_request_id(request), "method": request.method, "path": request.path, "status": status}
    fields |= {"bytes": request.stream.request_bytes or 0, "total_ms": total_ms}
    if hasattr(request.ctx, "answer"):  # it was not refused
        answer = request.ctx.answer
        if images := [result["image"] for result in answer.get("results", [answer]) if "image" in result]:
            fields["images"] = [f"{image['format']} {image['width']}x{image['height']}" for image in images]
        timing = {"queue": round(request.ctx.queued_s * 1e3, 1)} | answer["timing_ms"]
        for name, histogram in PHASES.items():
            fields[f"{name}_ms"] = timing[name]
            histogram.observe(timing[name] / 1e3)
    logger.info("request", extra={"fields": fields})


def get_request_id(request: Request) -> str:
    """Return the client's X-Banana-Request-ID if it can be logged as it is, otherwise a new id for the request."""
    if not hasattr(request.ctx, "id"):
        sent = request.headers.get("X-Banana-Request-ID", "")
        request.ctx.id = sent if re.fullmatch(r"[\w.:-]{1,128}", sent, re.ASCII) else str(uuid4())
    return request.ctx.id
