"""Ray Train around the training loop: 1..N processes, restarted from the last checkpoint when one dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from torch import nn

from dropgen.config import Experiment, Trial, to_json
from dropgen.errors import DropGenError, ResourceError
from dropgen.features.cluster import connect
from dropgen.platform.training.bench import Workbench
from dropgen.platform.training.loop import Progress
from dropgen.platform.training.trial import choose_device, finished, run_trial
from dropgen.platform.training.workers import Workers

MAX_RESTARTS = 3


def train_distributed(
    bench: Workbench, trial: Trial, on_progress: Callable[[Progress], None], address: str | None = None
) -> dict[str, Any]:
    """Trains one trial with `training.workers` processes (gloo on CPU, nccl on GPU).

    The processes share `last.ckpt` in the trial's folder: on a cluster the root must be a folder
    that all nodes see. A dead process restarts the group from that checkpoint, three times at most.

    Raises:
        ResourceError: The group died more often than that.
    """
    training = bench.experiment.training
    cuda = choose_device(training.device) == "cuda"
    with connect(address, cpus=training.workers * training.threads), _relay(on_progress) as reports:
        trainer = TorchTrainer(
            _train_rank,
            train_loop_config={
                "experiment": to_json(bench.experiment),
                "trial": to_json(trial),
                "root": str(bench.root),
                "reports": reports,
            },
            scaling_config=ScalingConfig(
                num_workers=training.workers, use_gpu=cuda, resources_per_worker={"CPU": training.threads}
            ),
            run_config=RunConfig(
                name=bench.key(trial),
                storage_path=str(bench.root / bench.experiment.name / "ray"),
                failure_config=FailureConfig(max_failures=MAX_RESTARTS),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _cause(error, trial) from error
    result = finished(bench.folder(trial))
    if result is None:
        raise ResourceError(f"trial '{trial.label}' ended without a result in {bench.folder(trial)}")
    return result


@contextmanager
def _relay(on_progress: Callable[[Progress], None]) -> Iterator[Queue]:
    """A queue that rank 0 fills, wherever it runs and however often it dies; drained in this process."""
    reports = Queue(actor_options={"num_cpus": 0})
    ended = threading.Event()

    def drain() -> None:
        while not (ended.is_set() and reports.empty()):
            try:
                on_progress(reports.get(timeout=0.5))
            except Empty:
                continue

    thread = threading.Thread(target=drain, name="progress", daemon=True)
    thread.start()
    try:
        yield reports
    finally:
        ended.set()
        thread.join()
        reports.shutdown()


def _cause(error: Exception, trial: Trial) -> DropGenError:
    """The project's own error from inside a worker, else one sentence about the dead group."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, DropGenError):
            return failure
    reason = " ".join(str(error).split())[:300]
    return ResourceError(f"trial '{trial.label}': the worker group failed {MAX_RESTARTS + 1} times; last: {reason}")


def _train_rank(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    bench = Workbench.open(Experiment.model_validate(config["experiment"]), Path(config["root"]))
    trial = Trial.model_validate(config["trial"])

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * size
        dist.all_gather_object(values, value)
        return values

    def wrap(network: nn.Module) -> nn.Module:
        devices = [torch.cuda.current_device()] if next(network.parameters()).is_cuda else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)

    def report(progress: Progress) -> None:
        if rank == 0:
            config["reports"].put(progress)

    workers = Workers(rank, size, gather, wrap) if size > 1 else Workers()
    run_trial(bench, trial, workers, report)
