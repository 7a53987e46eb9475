"""Testing all trials of an experiment, several at once as Ray tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from dropgen.config import Trial
from dropgen.console import progress
from dropgen.platform.evaluate import evaluate_trial
from dropgen.platform.train import Workbench
from dropgen.tuning.resources import shape


def evaluate_all(bench: Workbench, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Predicts and scores the held-out cases of every trial; the caller is connected to Ray.

    Returns:
        By trial key, what `evaluate_trial` returns.

    Raises:
        DropGenError: As `evaluate_trial`; the others that had begun are on disk.
    """
    training = bench.experiment.training.model_copy(update={"workers": 1})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = shape(training, bench.experiment.search.concurrent, nodes)
    task = ray.remote(_evaluate).options(
        num_cpus=training.threads, num_gpus=room.resources.get("GPU", 0), max_retries=1
    )
    shared = ray.put(bench)
    waiting = list(trials)
    running: dict[ray.ObjectRef[dict[str, Any]], Trial] = {}
    summaries: dict[str, dict[str, Any]] = {}
    with progress("trials") as bars:
        bar = bars.add_task("evaluate", total=len(trials), note="")
        while waiting or running:
            while waiting and len(running) < room.concurrent:
                trial = waiting.pop(0)
                running[task.remote(shared, trial)] = trial
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            trial = running.pop(done)
            try:
                summaries[bench.key(trial)] = ray.get(done)
            except RayTaskError as error:
                raise error.cause from None
            bars.update(bar, advance=1, note=trial.label)
    return {bench.key(trial): summaries[bench.key(trial)] for trial in trials}


def _evaluate(bench: Workbench, trial: Trial) -> dict[str, Any]:
    torch.set_num_threads(bench.experiment.training.threads)
    return evaluate_trial(bench, trial)
