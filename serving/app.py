"""`dropgen serve`: a registered model behind Ray Serve, until Ctrl-C.

The alias is resolved once, here: all replicas, also those that Serve restarts, hold the same version.
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
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict
from types import FrameType
from typing import Any, NoReturn

from dropgen.features.cluster import connect  # isort: skip  (first: it makes settings that ray reads on import)
import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from dropgen import console, memory
from dropgen.errors import ConfigError, ResourceError
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import fetch
from dropgen.serving.api import Model, create_api
from dropgen.serving.client import Client

APPLICATION = "dropgen"
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def application(bundle: Path, model: Model, replicas: int, threads: int, gpus: float) -> serve.Application:
    """Describes the deployment; each replica loads the model before it is reported ready.

    Args:
        bundle: Segmenter folder, on a disk that all nodes see.
        model: What answers say of it.
        replicas: Number of processes.
        threads: CPU threads of each.
        gpus: Share of a GPU for each; 0 predicts on the CPU.
    """

    def build() -> FastAPI:
        torch.set_num_threads(threads)
        segmenter = Segmenter.load(bundle, "cuda" if gpus else "cpu")
        return create_api(segmenter, model, memory.available() // replicas)

    configured = serve.deployment(
        name="segmenter",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        logging_config=QUIET,
    )
    return configured(serve.ingress(build)()).bind()


def command(arguments: argparse.Namespace) -> None:
    """`dropgen serve`; returns when it is interrupted or terminated.

    Raises:
        ConfigError: The host is not this machine alone, or there is no replica.
        ResourceError: The port is taken, or there are fewer processors than replicas, or
            the cluster serves something already.
        RegistryError: The model or its alias is not registered.
    """
    if arguments.replicas < 1:
        raise ConfigError(f"--replicas {arguments.replicas} serves nobody; ask for at least 1")
    host = _require_loopback(arguments.host)
    port = _free_port(host, arguments.port)
    bundle = fetch(arguments.root, arguments.name, arguments.alias)
    model = Model.of(bundle, f"models:/{arguments.name}@{arguments.alias}")
    Segmenter.load(bundle)  # a damaged bundle or missing weights is one sentence here, and a stack of retries in Serve
    url = f"http://{host}:{port}"
    _on_signals(_interrupt)  # terminated while Ray starts, what has started is still ended
    with connect(arguments.address, arguments.replicas), _serving(bundle, model, host, port, arguments.replicas):
        ready = {"ready": True, "url": url, "model": asdict(Client(url).model()), "replicas": arguments.replicas}
        console.document(ready, indent=None)
        console.say(f"{model.uri} is ready at {url}/v1/segment (Ctrl-C stops it)")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    console.say("stopped")


@contextlib.contextmanager
def _serving(bundle: Path, model: Model, host: str, port: int, replicas: int) -> Iterator[None]:
    if others := serve.status().applications:
        raise ResourceError(f"the Ray cluster serves {', '.join(others)} already; stop that or leave out --address")
    threads, gpus = _share(replicas)
    _on_signals(_interrupt)  # again: Ray has put its own in place
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        options = HTTPOptions(host=host, port=port)
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=options, logging_config=QUIET)
        serve.run(application(bundle, model, replicas, threads, gpus), name=APPLICATION, logging_config=QUIET)
        yield
    finally:
        _on_signals(signal.SIG_IGN)  # an impatient second Ctrl-C would leave processes behind
        with contextlib.redirect_stdout(io.StringIO()):  # Ray reports the end of Serve's controller as a failed task
            serve.shutdown()


def _share(replicas: int) -> tuple[int, float]:
    """CPU threads and share of a GPU for each replica."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    threads = max(1, int(max(node.get("CPU", 0) for node in nodes)) // replicas)
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    return threads, 1 / math.ceil(replicas / gpus) if gpus else 0


def _require_loopback(host: str) -> str:
    address = "127.0.0.1" if host == "localhost" else host
    try:
        if ipaddress.IPv4Address(address).is_loopback:
            return address
    except ValueError:
        pass
    raise ConfigError(
        f"--host {host} is not an address of this machine alone, and the service asks nobody who they are; "
        "use 127.0.0.1, and a tunnel such as ssh -L to reach it from elsewhere"
    )


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


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _on_signals(action: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, action)


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["serve", *sys.argv[1:]]))
