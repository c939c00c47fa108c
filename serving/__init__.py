"""What serves: request bodies, the queue, the life cycle, metrics, the log, the page, other platforms' routes."""
