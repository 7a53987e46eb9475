"""Testing all trials of an experiment, plain or with a test-time method, several at once as Ray tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from dropgen.config import Component, Experiment, Trial
from dropgen.console import progress
from dropgen.errors import ConfigError
from dropgen.platform.adaptation import build as build_adaptation
from dropgen.platform.evaluate import evaluate_trial
from dropgen.platform.evaluation.adapted import choose_adapted, stable_trial
from dropgen.platform.evaluation.kept import Checkpoint
from dropgen.platform.methods import build as build_method
from dropgen.platform.train import Workbench
from dropgen.platform.training.trial import finished
from dropgen.tuning.resources import shape

LOOK_SECONDS = 1.0


class Meter:
    """A Ray actor: what share of its predictions, 0..1, every task has made."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}

    def tell(self, key: str, share: float) -> None:
        """A task reports."""
        self._shares[key] = share

    def shares(self) -> dict[str, float]:
        """By trial key."""
        return self._shares


def evaluate_all(
    bench: Workbench, trials: Sequence[Trial], adapt: Component | None = None, checkpoint: Checkpoint = "chosen"
) -> dict[str, dict[str, Any]]:
    """Predicts and scores the held-out cases of every trial; the caller is connected to Ray.

    Args:
        bench: The opened experiment.
        trials: Trained ones.
        adapt: A test-time method; what it leaves open is tuned first, on the validation cases.
        checkpoint: Which one of every trial.

    Returns:
        By trial key, what `evaluate_trial` returns, or `{"unavailable": reason}` where a test-time method refuses the
        model.

    Raises:
        DropGenError: As `evaluate_trial`; the others that had begun are on disk.
    """
    training = bench.experiment.training.model_copy(update={"workers": 1})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = shape(training, bench.experiment.search.concurrent, nodes)
    task = ray.remote(_evaluate).options(
        num_cpus=training.threads, num_gpus=room.resources.get("GPU", 0), max_retries=1
    )
    actor: Any = ray.remote(num_cpus=0)(Meter)
    shared, meter = ray.put(bench), actor.remote()
    waiting = list(trials)
    running: dict[ray.ObjectRef[dict[str, Any]], str] = {}
    summaries: dict[str, dict[str, Any]] = {}
    with progress("trials") as bars:
        name = f"evaluate {checkpoint}" if adapt is None else f"tune and evaluate {adapt.name}"
        bar = bars.add_task(name, total=len(trials), note="")
        while waiting or running:
            while waiting and len(running) < room.concurrent:
                trial = waiting.pop(0)
                running[task.remote(shared, trial, adapt, checkpoint, meter)] = bench.key(trial)
            ended, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
            for done in ended:
                summaries[running.pop(done)] = _outcome(done, adapt)
            shares = ray.get(meter.shares.remote())
            begun = sum(shares.get(key, 0.0) for key in running.values())
            bars.update(bar, completed=len(summaries) + begun, note=f"{len(running)} at work" if running else "")
    return {bench.key(trial): summaries[bench.key(trial)] for trial in trials}


def _outcome(done: ray.ObjectRef[dict[str, Any]], adapt: Component | None) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = ray.get(done)
        return summary
    except RayTaskError as error:
        if adapt is not None and isinstance(error.cause, ConfigError):
            return {"unavailable": str(error.cause)}
        raise error.cause from None


def _evaluate(
    bench: Workbench, trial: Trial, adapt: Component | None, checkpoint: Checkpoint, meter: Any
) -> dict[str, Any]:
    torch.set_num_threads(bench.experiment.training.threads)
    key = bench.key(trial)

    def tell(done: int, total: int) -> None:
        meter.tell.remote(key, done / total)

    return evaluate_trial(bench, trial, tell, adapt, "run", checkpoint)


def adapt_all(
    bench: Workbench, trials: Sequence[Trial], adaptations: Sequence[Component]
) -> dict[str, dict[str, dict[str, Any]]]:
    """`evaluate_all` of every test-time method on the trials that it suits.

    Returns:
        By label of the test-time method, then by trial key. A trial whose stable partner has no result is
        `{"unavailable": reason}`.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for adapt in adaptations:
        adaptation = build_adaptation(adapt)
        suited = [trial for trial in trials if adaptation.suits(build_method(trial.method))]
        partners = {trial: stable_trial(bench.experiment, trial, adapt) for trial in suited}
        lonely = {
            trial: {"unavailable": f"it needs the trial '{partner.label}', which has no result"}
            for trial, partner in partners.items()
            if partner is not None and finished(bench.folder(partner)) is None
        }
        tested = evaluate_all(bench, [trial for trial in suited if trial not in lonely], adapt)
        found[adapt.label] = tested | {bench.key(trial): outcome for trial, outcome in lonely.items()}
    return found


def require_adaptable(experiment: Experiment, trials: Sequence[Trial]) -> None:
    """Checks, before anything is trained, that every test-time method of an experiment finds its models.

    Raises:
        ConfigError: One is unknown, suits no trial, or lacks the stable trial beside it.
    """
    for adapt in experiment.adaptations:
        for trial in choose_adapted(experiment, trials, adapt):
            stable_trial(experiment, trial, adapt)
