"""Headers that service and client agree on."""

REQUEST_HEADER = "X-Request-Id"
RETRY_HEADER = "X-Dropgen-Retry"  # a request of this id was sent before, and its answer did not come
