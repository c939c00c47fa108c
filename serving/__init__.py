"""The HTTP server: request bodies, queue, life cycle, metrics, log, page, and the routes of other platforms."""
