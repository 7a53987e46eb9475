"""Around every request: its id, who asks, a line in the log, and Prometheus metrics."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dropgen.serving.headers import REQUEST_HEADER
from dropgen.serving.journal import Journal
from dropgen.serving.page import FILES
from dropgen.serving.tokens import ForbiddenError, Tokens, UnauthorisedError, require_here

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # where the replicas of a service keep their metrics, so that any tells all
# Asked by load balancers, which have no token; read by people, in a browser without one.
OPEN = re.compile(rf"/|/healthz|/docs|{FILES}/.*")
BUCKETS = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900)


class Metrics:
    """What Prometheus reads at /metrics, over all replicas."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = None if SHARED in os.environ else self._registry
        self.requests = Counter("dropgen_requests", "Answered requests", ["route", "code"], registry=own)
        self.seconds = Histogram(
            "dropgen_request_seconds", "From first byte to answer", ["route"], buckets=BUCKETS, registry=own
        )
        self._queue = self._gauge("dropgen_queue_length", "Requests for a mask that wait or are worked on", own)
        self._models = self._gauge("dropgen_loaded_models", "Models in memory", own)
        self._model_bytes = self._gauge("dropgen_loaded_model_bytes", "Bytes that they take", own)
        self.worn = Counter("dropgen_replicas_replaced", "Replicas that kept too much memory", registry=own)
        self._bound = self._gauge("dropgen_replica_bound_bytes", "Memory beyond which they are replaced", own)
        self._rss = self._gauge("dropgen_replica_rss_bytes", "Resident memory of the replicas", own)
        if own is None:
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]

    def text(self, jobs: int) -> bytes:
        """The page, with every replica's gauges as they were refreshed last."""
        if folder := os.environ.get(SHARED):
            for pid in {file.stem.rpartition("_")[2] for file in Path(folder).glob("*.db")}:
                if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                    mark_process_dead(int(pid))  # type: ignore[no-untyped-call]
        # They lie on a disk that all replicas see: one number, which a sum over replicas would count again.
        shared = CollectorRegistry()
        Gauge("dropgen_jobs_unfinished", "Jobs accepted and not finished", registry=shared).set(jobs)
        return generate_latest(self._registry) + generate_latest(shared)

    def refresh(self, queue: int, models: int, model_bytes: int, bound: float) -> None:
        """Sets this replica's gauges; called every few seconds, so that any replica tells all."""
        self._bound.set(bound)
        self._queue.set(queue)
        self._models.set(models)
        self._model_bytes.set(model_bytes)
        self._rss.set(psutil.Process().memory_info().rss)

    def _gauge(self, name: str, text: str, registry: CollectorRegistry | None) -> Gauge:
        return Gauge(name, text, registry=registry, multiprocess_mode="livesum")


class Watch:
    """ASGI middleware: gives each request an id, asks for the token, counts and logs the answer.

    Args:
        app: What answers.
        routes: Those of the app, which give a path its template: a log never shows a path as it was sent.
        tokens: Who may ask.
        metrics: Counts.
        log: Gets one line per request.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Callable[[], Sequence[BaseRoute]],
        tokens: Tokens,
        metrics: Metrics,
        log: Journal | None,
    ) -> None:
        self._app = app
        self._routes = routes
        self._tokens = tokens
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(REQUEST_HEADER.lower().encode(), "")
        request = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        state = scope.setdefault("state", {})
        state |= {"request": request, "who": "nobody"}
        began, route, status = time.monotonic(), self._template(scope), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (REQUEST_HEADER.lower().encode(), request.encode())]
            await send(message)

        try:
            if not self._tokens:
                require_here(headers.get(b"host", ""), headers.get(b"origin"))
            if not OPEN.fullmatch(scope["path"]):
                state["who"] = self._tokens.who(headers.get(b"authorization"))
            await self._app(scope, receive, answer)
        except UnauthorisedError as error:
            refusal = JSONResponse({"error": str(error)}, 401, {"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, answer)
        except ForbiddenError as error:
            await JSONResponse({"error": str(error)}, 403)(scope, receive, answer)
        finally:
            seconds = time.monotonic() - began
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if self._log is not None:
                self._log.add(
                    request=request, who=state["who"], method=scope["method"], route=route, status=status,
                    seconds=round(seconds, 4),
                )  # fmt: skip

    def _template(self, scope: Scope) -> str:
        for route in self._routes():
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                return route.path_format
            if isinstance(route, Mount) and route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "other"
