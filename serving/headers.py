"""Headers that service and client agree on."""

REQUEST_HEADER = "X-Request-Id"
FLAGS_HEADER = "X-Dropgen-Flags"  # a JSON list of what a person should look at
RETRY_HEADER = "X-Dropgen-Retry"  # a request of this id was sent before, and its answer did not come
