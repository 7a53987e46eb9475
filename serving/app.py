"""`dropgen serve`: registered models behind Ray Serve, until Ctrl-C.

A replica looks an alias up every few seconds, so moving the alias is the rollout.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import io
import ipaddress
import logging
import math
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dropgen.features.cluster import connect  # isort: skip  (first: it makes settings that ray reads on import)
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions

from dropgen import console, memory
from dropgen.errors import ConfigError, ResourceError
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import fetch
from dropgen.serving.interrupts import interrupt, on_signals
from dropgen.serving.models import Model
from dropgen.serving.replica import GIB, Deployment, Replica
from dropgen.serving.start import QUIET, deploy, start_serve, until_ready, watch
from dropgen.serving.telemetry import SHARED
from dropgen.serving.tokens import VARIABLE, Tokens, server_tokens, token_path

APPLICATION = "dropgen"
HEALTH_SECONDS = 5  # three times so long, and a replica that has to be replaced is
BUSY_REQUESTS = 2  # per replica, more of which call for another
DRAIN_POLL_SECONDS = 0.2


def application(plan: Deployment, threads: int, gpus: float) -> serve.Application:
    """Describes the deployment.

    Args:
        plan: What a replica is told.
        threads: CPU threads of each.
        gpus: Share of a GPU for each; 0 predicts on the CPU.
    """
    scaling: dict[str, Any] = (
        {"num_replicas": plan.least}
        if plan.least == plan.most
        else {
            "autoscaling_config": {
                "min_replicas": plan.least, "max_replicas": plan.most, "target_ongoing_requests": BUSY_REQUESTS,
            }
        }
    )  # fmt: skip
    configured = serve.deployment(
        name="segmenter",
        max_ongoing_requests=10 * plan.queue,  # more than a replica takes on: the 429 of a full queue is the replica's
        graceful_shutdown_timeout_s=plan.answer_seconds,
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=60,  # a machine under load is slow, not ill
        ray_actor_options={
            "num_cpus": 1,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": {SHARED: str(plan.root / "service" / "metrics"), **memory.ONE_ARENA}},
        },
        logging_config=QUIET,
        **scaling,
    )
    return configured(serve.ingress()(Replica)).bind(plan, threads, "cuda" if gpus else "cpu")


def command(arguments: argparse.Namespace) -> None:
    """`dropgen serve`; returns when it is interrupted or terminated.

    Raises:
        ConfigError: The host is open to others and no token is asked for, a token is none, or there is no replica.
        ResourceError: The port is taken, there are fewer processors than replicas, the cluster serves something
            already, no replica could start, or Ray has gone away.
        RegistryError: The model or its alias is not registered.
    """
    if arguments.replicas < 1:
        raise ConfigError(f"--replicas {arguments.replicas} serves nobody; ask for at least 1")
    if arguments.queue < 1:
        raise ConfigError(f"--queue {arguments.queue} takes no request; ask for at least 1")
    if not arguments.margin_gb >= 0:
        raise ConfigError(f"--margin-gb {arguments.margin_gb:g} would replace every replica; give 0 or more, or inf")
    host = _require_private(arguments.host, arguments.insecure)
    if not ipaddress.IPv4Address(host).is_loopback and arguments.token_file is None and VARIABLE not in os.environ:
        raise ConfigError(
            f"--host {host} is an address that others reach, and no token was chosen for it; give --token-file or "
            f"{VARIABLE}, put a proxy with TLS before it, or use 127.0.0.1 and a tunnel such as ssh -L"
        )
    port = _free_port(host, arguments.port)
    bundle = fetch(arguments.root, arguments.name, arguments.alias)
    Segmenter.load(bundle)  # a damaged bundle or missing weights is one sentence here, and a stack of retries in Serve
    tokens, made = (Tokens({}), None) if arguments.insecure else server_tokens(arguments.root, arguments.token_file)
    plan = Deployment(
        arguments.root,
        f"{arguments.name}@{arguments.alias}",
        tokens,
        least=arguments.replicas,
        most=max(arguments.replicas, arguments.max_replicas or 0),
        model_bytes=None if arguments.models_gb is None else int(arguments.models_gb * GIB),
        margin_bytes=arguments.margin_gb * GIB,
        queue=arguments.queue,
        answer_seconds=arguments.timeout,
        keep_seconds=3600 * arguments.keep_hours,
        sources=tuple(path.resolve() for path in arguments.allow),
    )
    url = f"http://{host}:{port}"
    on_signals(interrupt)  # terminated while Ray starts, what has started is still ended
    with connect(arguments.address, arguments.replicas), _serving(plan, host, port) as model:
        ready = {"ready": True, "url": url, "model": asdict(model), "replicas": arguments.replicas}
        console.document(ready, indent=None)
        console.say(f"models:/{plan.default} is ready at {url}/v1/segment (Ctrl-C stops it)")
        if made is not None:
            console.say(f"token, shown once and kept in {token_path(arguments.root)}: {made}")
        with contextlib.suppress(KeyboardInterrupt):
            watch()
    console.say("stopped")


@contextlib.contextmanager
def _serving(plan: Deployment, host: str, port: int) -> Iterator[Model]:
    if others := serve.status().applications:
        raise ResourceError(f"the Ray cluster serves {', '.join(others)} already; stop that or leave out --address")
    threads, gpus = _share(plan.most)
    _fresh(plan.root / "service")
    on_signals(interrupt)  # again: Ray has put its own in place
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        # Serve itself would answer 500 without a sentence: its limit lies behind ours.
        start_serve(HTTPOptions(host=host, port=port, request_timeout_s=2 * plan.answer_seconds + 3600))
        deploy(application(plan, threads, gpus), APPLICATION)
        yield until_ready(APPLICATION, f"http://{host}:{port}", plan.least)
        on_signals(signal.SIG_IGN)
        _drain()
    finally:
        on_signals(signal.SIG_IGN)  # an impatient second Ctrl-C would leave processes behind
        # Ray reports the end of Serve's controller as a failed task; where Ray has gone away nothing is left to end.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(RayError):
            serve.shutdown()


def _share(replicas: int) -> tuple[int, float]:
    """CPU threads and share of a GPU for each replica."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    threads = max(1, int(max(node.get("CPU", 0) for node in nodes)) // replicas)
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    return threads, 1 / math.ceil(replicas / gpus) if gpus else 0


def _drain() -> None:
    """Lets replicas end what they have accepted, while the proxy still takes their answers.

    Each has as long as the deployment's `graceful_shutdown_timeout_s` says; a blocking `delete` gives up after 60 s.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        serve.delete(APPLICATION, _blocking=False)
        while APPLICATION in serve.status().applications:
            time.sleep(DRAIN_POLL_SECONDS)


def _fresh(service: Path) -> None:
    """Empties what only a running service means something to; one root has one service at a time."""
    for name in ("metrics", "spool"):
        shutil.rmtree(service / name, ignore_errors=True)
        (service / name).mkdir(parents=True)


def _require_private(host: str, insecure: bool) -> str:
    address = "127.0.0.1" if host == "localhost" else host
    try:
        found = ipaddress.IPv4Address(address)
    except ValueError:
        raise ConfigError(f"--host {host} is no IPv4 address; 127.0.0.1 is this machine alone") from None
    if insecure and not found.is_loopback:
        raise ConfigError(
            f"--host {host} with --insecure would let everybody there in; leave --insecure out, or use 127.0.0.1"
        )
    return address


def _free_port(host: str, port: int) -> int:
    """The port itself, or any free one for 0; bound once to see that it is free."""
    try:
        with socket.create_server((host, port)) as probe:
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        cause = error.strerror if isinstance(error, OSError) else "ports end at 65535"
        raise ResourceError(
            f"cannot listen on {host}:{port} ({cause}); choose another --port, or 0 for a free one"
        ) from None


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["serve", *sys.argv[1:]]))
