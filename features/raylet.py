"""Ray's own node, waited for as long as it lives.

Ray gives a node 30 s, and the node gives its agents 15 s to write down their ports and dies without: a machine under
load misses both. Neither can be set, but agents that were given their ports have none to write down. Other limits can.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import psutil
from ray._private import parameter, services

from dropgen.console import warn
from dropgen.errors import ResourceError

POLL_SECONDS = 0.2
TELL_SECONDS = 15.0
PATIENT = {"RAY_gcs_server_port_wait_time_s": "600", "RAY_worker_register_timeout_seconds": "600"}  # instead of 30, 60
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


@contextmanager
def while_it_lives() -> Iterator[None]:
    """Makes a `ray.init` in the block wait for a node that is still starting, and say so every 15 s.

    Ray asks for its node until it is there or the time is over: so the question is not answered before the node is
    there or dead.

    Raises:
        ResourceError: It died.
    """
    for name, seconds in PATIENT.items():
        os.environ.setdefault(name, seconds)
    module: Any = parameter  # a class in a module is nothing that a type checker lets be replaced
    ask, settings = services.get_node, module.RayParams
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    services.get_node = partial(_wait, ask, time.monotonic())
    module.RayParams = lambda **given: settings(**given | ports)
    try:
        yield
    finally:
        services.get_node, module.RayParams = ask, settings


def _wait(ask: Any, began: float, *node: Any) -> Any:
    told = began
    while True:
        try:
            return ask(*node)
        except RuntimeError as error:  # it is not there yet
            if not any(_is_raylet(child) for child in psutil.Process().children()):
                raise ResourceError(
                    f"Ray's node died while it started, on a machine with a load of {os.getloadavg()[0]:.0f} and "
                    f"{os.cpu_count()} processors; raylet.out says of what, in Ray's session_latest/logs"
                ) from error
        if (now := time.monotonic()) - told >= TELL_SECONDS:
            told = now
            warn(f"Ray's own processes are starting for {now - began:.0f} s (load {os.getloadavg()[0]:.0f})")
        time.sleep(POLL_SECONDS)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as held:  # all at once, so that no two are one
        return [held.enter_context(socket.create_server(("", 0))).getsockname()[1] for _ in range(number)]


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return bool(process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
