"""The one place that starts or joins a Ray cluster."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dropgen.errors import ResourceError
from dropgen.manifest import REPOSITORY

# Ray reads these when it is imported. Its ports listen on all interfaces, so a cluster of ours always asks for
# the token; a client that was given the address of a cluster asks for it where this machine has one.
TOKEN = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
if TOKEN.is_file() or "RAY_AUTH_TOKEN" in os.environ or "RAY_ADDRESS" not in os.environ:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray  # noqa: E402
from ray.exceptions import AuthenticationError  # noqa: E402

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit` for the process that it starts


@contextmanager
def connect(address: str | None = None, cpus: int = 1) -> Iterator[None]:
    """Connects this process to Ray for the duration of the block; inside another such block it is a check only.

    Args:
        address: A running cluster; by default RAY_ADDRESS, which a submitted job finds set, else a cluster of
            this process alone that ends with the block.
        cpus: Processors that the work asks for at the same time.

    Raises:
        ResourceError: The cluster cannot be reached or has too few processors in all.
    """
    if ray.is_initialized():
        _require(cpus)
        yield
        return
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    own = {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False} if place == "local" else {}
    try:
        ray.init(
            address=place,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env=_runtime_env(),
            **own,
        )
    except (ConnectionError, AuthenticationError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {place}: {str(error).splitlines()[0]}; start one with "
            f"`RAY_AUTH_MODE=token ray start --head --num-cpus={cpus}` or leave the address out"
        ) from error
    try:
        _require(cpus)
        yield
    finally:
        ray.shutdown()


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
