"""Load and soak: many requests to a real `dropgen serve`, and a replica that is killed among them.

Whether a request was lost or worked twice is counted by its id in the audit log, which the service writes before it
answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from dropgen.config import Network
from dropgen.errors import ConfigError, DropGenError, ResourceError, StoreError
from dropgen.features.bench.store import make_features
from dropgen.features.studies.volume import write_volume
from dropgen.platform.bench.predict import FULL_SCALE, SMALL
from dropgen.platform.bench.predict_model import image_alone
from dropgen.platform.tracking import register
from dropgen.serving.client import VOLUME_TYPE, Answer, Client
from dropgen.serving.journal import AUDIT_FILE
from dropgen.serving.tokens import client_token

NAME, REPLICA = "bench", "ServeReplica"
PHASES = ("small", "large", "kill")
VOLUMES = 4  # different ones, sent in turn
WARM_UPS = 20  # requests before memory is looked at first: of a size, a replica takes what it takes with the first few
STOP_SECONDS = 120
MIB = 2**20


@dataclass(frozen=True)
class ServeBench:
    """What is asked, how often, and of whom.

    Attributes:
        edges: Voxels per edge of a small and of a large volume, 1 mm, int16.
        requests: Of the small one, of the large one, and of the small one with a kill in the middle.
        clients: That ask at the same time.
        replicas: That answer.
        crop: Edge of a window, voxels; windows overlap by half.
        classes: K.
        network: Small, with random weights: what is measured is the service.
    """

    edges: tuple[int, ...] = (32, 128)
    requests: tuple[int, int, int] = (1000, 50, 100)
    clients: int = 4
    replicas: int = 1
    crop: int = 32
    classes: int = 3
    network: Network = SMALL

    def __post_init__(self) -> None:
        if len(self.edges) != 2 or min(self.edges) < 1:
            raise ConfigError(f"--edges = {self.edges}: name two, of a small and of a large volume, for example 32,128")
        if len(self.requests) != len(PHASES) or min(self.requests) < 0 or not any(self.requests):
            raise ConfigError(
                f"--requests = {self.requests}: name three numbers, of small volumes, of large ones, and of small ones "
                "with a kill among them, for example 1000,50,100"
            )
        if self.clients < 1 or self.replicas < 1:
            raise ConfigError(f"--clients {self.clients} --replicas {self.replicas}: both need at least 1")


@dataclass(frozen=True)
class Asked:
    """One request as its client saw it.

    Attributes:
        seconds: From its first byte to its mask, all tries included.
        answer: What came; None where it failed.
        error: Why.
    """

    seconds: float
    answer: Answer | None
    error: str = ""


@dataclass
class Service:
    """A running service.

    Attributes:
        process: `dropgen serve`.
        client: Asks it.
        root: Its output root.
    """

    process: psutil.Process
    client: Client
    root: Path

    def replicas(self) -> list[psutil.Process]:
        """Its replicas' processes."""
        found = []
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(REPLICA in word for word in process.cmdline()[:1]):
                    found.append(process)
        return found

    def resident(self) -> int:
        """Bytes of all replicas in memory."""
        total = 0
        for process in self.replicas():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def audited(self) -> Counter[str]:
        """Lines of the audit log for each request."""
        lines = (self.root / "service" / AUDIT_FILE).read_text().splitlines()
        return Counter(json.loads(line)["request"] for line in lines)


def bench_serve(
    spec: ServeBench, folder: Path, on_request: Callable[[str], None] = lambda phase: None
) -> list[dict[str, Any]]:
    """Starts a service on an untrained model under `folder` and asks it; compares every mask with its volume's first.

    Returns:
        Rows `bench, phase, edge, requests, failed, errors, retried, killed, lost, doubled, p50_ms, p99_ms, max_ms,
        rss_before_mib, rss_after_mib, rss_growth, raw_ms`; `lost` were never answered, or without
        a line in the audit log, `doubled` have more than one line. `rss_growth` is None where a replica was killed.

    Raises:
        StoreError: A mask was not that of its volume.
        ResourceError: The service does not start.
    """
    image_alone(spec.network, spec.classes, spec.crop).save(folder / "bundle")
    register(folder, folder / "bundle", NAME)
    volumes = {edge: [_volume(folder, edge, seed) for seed in range(VOLUMES)] for edge in spec.edges}
    small, large = spec.edges
    rows = []
    with _serving(spec, folder) as service:
        for phase, edge, requests in zip(PHASES, (small, large, small), spec.requests, strict=True):
            if requests:
                rows.append(_phase(spec, service, phase, volumes[edge], requests, on_request) | {"edge": edge})
    return rows


def _phase(
    spec: ServeBench,
    service: Service,
    phase: str,
    volumes: Sequence[bytes],
    requests: int,
    on_request: Callable[[str], None],
) -> dict[str, Any]:
    masks = [_asked(service.client, volume) for volume in volumes]
    if broken := next((asked.error for asked in masks if asked.answer is None), None):
        raise ResourceError(f"the service does not segment the benchmark's volume: {broken}")
    for index in range(WARM_UPS - len(volumes)):
        _asked(service.client, volumes[index % len(volumes)])
    before, killed, over = service.resident(), list[int](), threading.Lock()
    done = 0

    def ask(index: int) -> Asked:
        nonlocal done
        asked = _asked(service.client, volumes[index % len(volumes)])
        with over:
            done += 1
            if phase == "kill" and done == (requests + 1) // 2:
                victim = service.replicas()[0]
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.pid)
            on_request(phase)
        return asked

    with ThreadPoolExecutor(spec.clients) as clients:
        found = list(clients.map(ask, range(requests)))
    after = service.resident()
    for index, asked in enumerate(found):
        wanted = masks[index % len(volumes)].answer
        if asked.answer is not None and wanted is not None and asked.answer.mask != wanted.mask:
            raise StoreError(
                f"request {asked.answer.request} was answered with another mask; no time of this run counts"
            )
    audited = service.audited()
    answered = [asked.answer for asked in found if asked.answer is not None]
    times = [round(1000 * asked.seconds, 2) for asked in found]
    return {
        "bench": "serve",
        "phase": phase,
        "requests": requests,
        "failed": requests - len(answered),
        "errors": sorted({asked.error for asked in found if asked.error}),
        "retried": sum(answer.tries > 1 for answer in answered),
        "killed": len(killed),
        "lost": requests - len(answered) + sum(audited[answer.request] == 0 for answer in answered),
        "doubled": sum(audited[answer.request] > 1 for answer in answered),
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
        "max_ms": max(times),
        "rss_before_mib": round(before / MIB, 1),
        "rss_after_mib": round(after / MIB, 1),
        "rss_growth": None if killed else after / before - 1,
        "raw_ms": times,
    }


def _asked(client: Client, volume: bytes) -> Asked:
    began = time.monotonic()
    try:
        answer = client.ask(volume, VOLUME_TYPE, "the volume")
    except DropGenError as error:
        return Asked(time.monotonic() - began, None, str(error))
    return Asked(time.monotonic() - began, answer)


@contextlib.contextmanager
def _serving(spec: ServeBench, root: Path) -> Iterator[Service]:
    """`dropgen serve` on a free port, ended with the block."""
    command = [
        sys.executable, "-m", "dropgen", "serve", "--name", NAME, "--port", "0", "--replicas", str(spec.replicas),
        "--queue", str(max(16, spec.clients)), "--json", "--root", str(root),
    ]  # fmt: skip
    with (root / "serve.log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
    assert server.stdout is not None
    try:
        first = server.stdout.readline()
        if not first:
            raise ResourceError(f"dropgen serve did not start: {(root / 'serve.log').read_text().strip()[-500:]}")
        url = json.loads(first)["url"]
        yield Service(psutil.Process(server.pid), Client(url, client_token(root, None, url)), root)
    finally:
        family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
        for process in family:  # what an interrupted service left
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        server.kill()
        server.wait()


def _volume(folder: Path, edge: int, seed: int) -> bytes:
    field_xyz = make_features(1, (edge,) * 3, seed=seed)[0].astype(np.float32)
    path = folder / f"{edge}-{seed}.nii"
    write_volume(path, np.rint(FULL_SCALE * field_xyz).astype(np.int16), np.eye(4))
    return path.read_bytes()
