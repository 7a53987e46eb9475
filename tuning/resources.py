"""What one trial asks of the cluster, and how many trials fit on it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dropgen.config import Training
from dropgen.errors import ResourceError

# A trial that leads a worker group asks for memory instead of CPUs: a driver that held even 0.01 CPU
# would keep two workers off a machine of two CPUs for ever.
DRIVER_MEMORY = 256 * 2**20


@dataclass(frozen=True)
class Shape:
    """The resources of one trial's own process, in Ray's words, and how many such trials run at once."""

    resources: Mapping[str, float]
    concurrent: int


def shape(training: Training, concurrent: int, nodes: Sequence[Mapping[str, float]]) -> Shape:
    """Fits trials on a cluster.

    Args:
        training: Threads and workers of a trial.
        concurrent: Trials that the experiment wants to run at once.
        nodes: Resources of every living node, as Ray names them.

    Raises:
        ResourceError: Not even one trial fits; says with which command it would.
    """
    slots = sum(int(node.get("CPU", 0)) // training.threads for node in nodes)
    fits = slots // training.workers
    if fits < 1:
        needed = training.threads * training.workers
        widest = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        raise ResourceError(
            f"one trial needs {training.workers} x {training.threads} CPUs (workers x threads) and the cluster offers "
            f"{_total(nodes, 'CPU'):g}, at most {widest} on one machine; lower --training.threads or "
            f"--training.workers, or start a cluster that fits: ray start --head --num-cpus={needed}"
        )
    gpus = _total(nodes, "GPU")
    if training.device == "cuda" and gpus < training.workers:
        raise ResourceError(
            f"training.device = cuda needs {training.workers} GPUs and the cluster offers {gpus:g}; train with "
            f"--training.device=cpu, or start a cluster that has them: ray start --head --num-gpus={training.workers}"
        )
    if training.workers > 1:
        if training.device != "cpu" and gpus >= training.workers:
            fits = min(fits, int(gpus) // training.workers)
        return Shape({"CPU": 0, "memory": DRIVER_MEMORY}, min(concurrent, fits))
    together = min(concurrent, fits)
    if training.device == "cpu" or not gpus:
        return Shape({"CPU": training.threads}, together)
    # Trials share a GPU rather than wait for one: a small 3D network rarely fills it.
    return Shape({"CPU": training.threads, "GPU": min(1.0, gpus / together)}, together)


def _total(nodes: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)
