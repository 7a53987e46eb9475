"""The one place that starts or joins a Ray cluster."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import AuthenticationError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dropgen.errors import ResourceError
from dropgen.features.raylet import while_it_lives
from dropgen.manifest import REPOSITORY, file_digest

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit` for the process that it starts
GRACE_SECONDS = 5


@contextmanager
def connect(address: str | None = None, cpus: int = 1) -> Iterator[None]:
    """Connects this process to Ray for the duration of the block; inside another such block it is a check only.

    Args:
        address: A running cluster; by default RAY_ADDRESS, which a submitted job finds set, else a cluster of
            this process alone that ends with the block.
        cpus: Processors that the work asks for at the same time.

    Raises:
        ResourceError: The cluster cannot be reached, dies while it starts or has too few processors in all.
    """
    if ray.is_initialized():
        _require(cpus)
        yield
        return
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run needs no network
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "runtime_env": _runtime_env()}
    others = set(psutil.Process().children(recursive=True))
    try:
        if place == "local":
            with while_it_lives():
                ray.init(address=place, num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False, **quiet)
        else:
            _join(place, quiet, cpus)
        _require(cpus)
        yield
    finally:
        _leave(others)


def require_shared(files: Sequence[Path]) -> None:
    """Refuses a cluster of which a node does not see these files as this process does.

    Raises:
        ResourceError: Names the node and the file.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here]
    wanted = [(file, file_digest(file)) for file in files]
    look: Any = ray.remote(num_cpus=0)(_unseen)
    answers = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(wanted)
        for node in others
    ]
    for node, unseen in zip(others, ray.get(answers), strict=True):
        if unseen is not None:
            raise ResourceError(
                f"node {node['NodeManagerHostname']} of the Ray cluster does not see {unseen} as this machine does: "
                "put the study and --root into folders that all nodes share"
            )


def _unseen(wanted: Sequence[tuple[Path, str]]) -> Path | None:
    """The first file that is not here, or is another here."""
    for file, digest in wanted:
        try:
            if file_digest(file) == digest:
                continue
        except OSError:
            pass
        return file
    return None


def _leave(others: set[psutil.Process]) -> None:
    """Ends the connection and every process that it started.

    Ray's agents outlive a raylet that dies while it starts by about a minute; they are looked up before
    the raylet goes, because afterwards nothing tells whose they were.
    """
    started = set(psutil.Process().children(recursive=True)) - others
    ray.shutdown()
    _, alive = psutil.wait_procs(started, timeout=GRACE_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)


def _join(place: str, quiet: Mapping[str, Any], cpus: int) -> None:
    try:
        _knock(place)
        # Ray does this by itself where it starts or finds a cluster, not where it is given an address.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        ray.init(address=place, **quiet)
    except (OSError, AuthenticationError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {place}: {str(error).splitlines()[0]}; start one with "
            f"`RAY_AUTH_MODE=token ray start --head --num-cpus={cpus}` or leave the address out"
        ) from error


def _knock(place: str) -> None:
    """Fails within seconds where nothing listens; Ray itself keeps trying for many minutes."""
    host, separator, port = place.rpartition("://")[2].rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


def _require(cpus: int) -> None:
    have = int(ray.cluster_resources().get("CPU", 0))
    if have < cpus:
        raise ResourceError(
            f"the Ray cluster has {have} CPUs and {cpus} are asked for; start it with "
            f"`RAY_AUTH_MODE=token ray start --head --num-cpus={cpus}` or ask for fewer workers"
        )


def _runtime_env() -> dict[str, Any] | None:
    """Lets workers import the same `dropgen` as this process, where a submitted job has not seen to it."""
    job = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env") or {}
    if "working_dir" in job or "PYTHONPATH" in job.get("env_vars", {}):
        return None
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
