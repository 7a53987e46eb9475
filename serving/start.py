"""The start of a service on Ray Serve, waited for as long as something lives that can still end it.

Serve itself goes by the clock: it kills a proxy that is not ready after 15 s and gives up on it after 60 s, both of
which a machine under load misses.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.serve.config import ControllerOptions, HTTPOptions, ProxyLocation
from ray.serve.schema import ApplicationStatus, LoggingConfig, ServeStatus

from dropgen.console import say, warn
from dropgen.errors import ResourceError, ServiceError
from dropgen.serving.client import Client
from dropgen.serving.models import Model

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
# For Serve's controller: a proxy is killed for being dead, not for being slow.
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "600", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120"}
POLL_SECONDS = 0.5
WATCH_SECONDS = 2.0
TELL_SECONDS = 15.0  # between lines on a start that takes long
REPLICA = "SERVE_REPLICA::"
OUTCOME = re.compile(r"^(?:ray\.\w+\.)?([\w.]*(?:Error|Exception|Interrupt)): (.+)$", re.MULTILINE)


def start_serve(options: HTTPOptions) -> None:
    """Starts Serve's controller and its proxy, of which the latter may come later."""
    with contextlib.suppress(TimeoutError):  # of the proxy: `until_ready` looks at it for as long as it takes
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=options,
            logging_config=QUIET,
            controller_options=ControllerOptions(runtime_env={"env_vars": PATIENT}),
        )


def deploy(application: serve.Application, name: str) -> None:
    """Hands an application to Serve, and does not wait for its replicas."""
    target = serve.RunTarget(target=application, name=name, logging_config=QUIET)
    with contextlib.suppress(TimeoutError):
        serve.run_many([target], wait_for_applications_running=False)


def until_ready(name: str, url: str, replicas: int) -> Model:
    """Waits for the application to answer at `url`, and says every 15 s how far it is; returns its default model.

    Raises:
        ResourceError: No replica could start, or Ray itself is gone; says of what.
    """
    began = told = time.monotonic()
    client, deaths = Client(url, patience=0), Deaths()
    while True:
        status = serving_status()
        for cause in deaths.look():
            warn(f"a replica died while it started, {cause}; Serve starts another")
        application = status.applications.get(name)
        if application is not None and application.status == ApplicationStatus.DEPLOY_FAILED:
            told_by_serve = "\n".join([application.message, *(one.message for one in application.deployments.values())])
            raise ResourceError(f"no replica could start: {cause_of(told_by_serve)}")
        if application is not None and application.status == ApplicationStatus.RUNNING:
            with contextlib.suppress(ServiceError):
                return client.model()
        if (now := time.monotonic()) - told >= TELL_SECONDS:
            told = now
            say(f"starting for {now - began:.0f} s: {_progress(status, name, replicas)}")
        time.sleep(POLL_SECONDS)


def watch() -> None:
    """Says what replicas of a running service die of, until it is interrupted.

    Raises:
        ResourceError: Ray itself is gone.
    """
    deaths = Deaths()
    while True:
        serving_status()
        for cause in deaths.look():
            warn(f"a replica died, {cause}; Serve starts another")
        time.sleep(WATCH_SECONDS)


def serving_status() -> ServeStatus:
    """What Serve says of itself.

    Raises:
        ResourceError: Nobody is there who could.
    """
    try:
        return serve.status()
    except ActorUnavailableError:  # Ray starts Serve's controller again
        return ServeStatus()
    except RayError as error:
        raise ResourceError(f"Ray has gone away ({cause_of(str(error))}); start the service again") from error


@dataclass
class Deaths:
    """Tells of replicas' processes that died, each once, and of what."""

    _known: dict[str, Any] = field(default_factory=dict)

    def look(self) -> list[str]:
        """The causes of deaths since the last look; a replica that Serve itself ended is none."""
        living = {
            actor["name"]: actor["namespace"]
            for actor in ray.util.list_named_actors(all_namespaces=True)
            if actor["name"].startswith(REPLICA)
        }
        causes = [cause for name in set(self._known) - set(living) if (cause := _death(self._known.pop(name)))]
        for name in set(living) - set(self._known):
            with contextlib.suppress(ValueError):  # it died in between: nothing is left to ask
                self._known[name] = ray.get_actor(name, living[name])
        return causes


def _death(actor: Any) -> str:
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=POLL_SECONDS)
    except RayActorError as error:
        text = str(error)
        return "" if "ray.kill" in text or "INTENDED" in text else cause_of(text)
    except RayError:
        pass
    return ""


def cause_of(text: str) -> str:
    """One line out of what Ray or Serve tells at length."""
    if "running low on memory" in text:
        return "Ray killed its process, for the machine was out of memory"
    if "worker process has died" in text:
        return "its process was killed, likely for want of memory"
    found = OUTCOME.findall(text)
    if found:
        kind, sentence = found[-1]
        return sentence if kind.startswith("dropgen.") else f"{kind.rpartition('.')[2]}: {sentence}"
    return " ".join(text.split())[-300:] or "nothing is known of why"


def _progress(status: ServeStatus, name: str, replicas: int) -> str:
    proxy = ", ".join(sorted({str(one.value).lower() for one in status.proxies.values()})) or "not there yet"
    up, others = 0, list[str]()
    if (application := status.applications.get(name)) is not None:
        for deployment in application.deployments.values():
            for state, count in deployment.replica_states.items():
                if state == "RUNNING":
                    up += count
                else:
                    others.append(f"{count} {state.lower()}")
    return ", ".join([f"proxy {proxy}", f"{up} of {replicas} replicas up", *others])
