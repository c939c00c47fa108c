"""Metrics for Prometheus."""

from functools import partial

from prometheus_client import Counter, Gauge, Histogram, Info

histogram = partial(Histogram, buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60))
REQUESTS = Counter("classifier_requests", "Responses, by status", ["status"])
REQUEST_SECONDS = histogram("classifier_request_seconds", "Time from first byte to response", ["route", "status"])
PHASES = {  # by their names in timing_ms
    "queue": histogram("classifier_queue_seconds", "Time that a request waited for a thread"),
    "decode": histogram("classifier_decode_seconds", "Time to decode and resize a request's images"),
    "model": histogram("classifier_model_seconds", "Time that the model took for a request"),
}
REQUESTS_IN_PROGRESS = Gauge("classifier_requests_in_progress", "Requests that are running")
REQUESTS_QUEUED = Gauge("classifier_requests_queued", "Requests that are waiting for a thread")
MODEL = Info("classifier_model", "The model and the backend in use")
