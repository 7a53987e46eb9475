"""Early stopping by Ray Tune's schedulers, with a note in the folder of what they stop, because Ray calls it complete.

A scheduler compares trials of one method and one seed alone: across methods it would favour those that learn fast, and
across seeds it would leave a method with fewer of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from dropgen.config import Training
from dropgen.manifest import write_json
from dropgen.platform.train import Workbench
from dropgen.platform.training.trial import finished
from dropgen.tuning.space import Space

STOPPED = "stopped.json"
REDUCTION = 3


def scheduler(bench: Workbench, space: Space) -> TrialScheduler | None:
    """What `search.scheduler` names; None where nothing is stopped.

    Time is counted in validated steps: between validations a trial repeats its last Dice.
    """
    name, training = bench.experiment.search.scheduler, bench.experiment.training
    grace = _grace(training)
    halving = {
        "time_attr": "validated_step", "max_t": training.steps, "grace_period": grace, "reduction_factor": REDUCTION
    }  # fmt: skip
    if name == "asha":
        return _Halving(bench, space, "ASHA", **halving)
    if name == "hyperband":
        return _Halving(bench, space, "Hyperband", brackets=_brackets(training, grace), **halving)
    if name == "median":
        # To pause a trial would cost a process start and give nothing: nobody waits for its place.
        return _Median(bench, space, "median", time_attr="validated_step", grace_period=grace, min_time_slice=math.inf)
    return None


def rungs(training: Training) -> list[int]:
    """The steps at which ASHA looks."""
    every = (_grace(training) * REDUCTION**level for level in range(training.steps.bit_length()))
    return [step for step in every if step < training.steps]


def _grace(training: Training) -> int:
    return min(training.steps, max(training.validate_every, training.steps // REDUCTION**2))


def _brackets(training: Training, grace: int) -> int:
    """As many as there are rungs, so that the last bracket gives its trials all the time there is."""
    return int(math.log(training.steps / grace) / math.log(REDUCTION) + 1)


class _Noted:
    """Over a scheduler of Ray's: leaves a note where it stops a trial that has no result yet."""

    behind: str

    def __init__(self, bench: Workbench, space: Space, title: str, **settings: Any) -> None:
        self._bench, self._space, self._title = bench, space, title
        super().__init__(**settings)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "error" in result:  # a failure is no early stop
            return TrialScheduler.CONTINUE
        decision: str = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        own = self._space.trial(trial.config["point"], trial.config["seed"])
        folder = self._bench.folder(own)
        if decision == TrialScheduler.STOP and finished(folder) is None:
            write_json(folder / STOPPED, {"label": own.label, **self._note(result)})
        return decision

    def _note(self, result: Mapping[str, Any]) -> dict[str, Any]:
        step, dice = result["validated_step"], result["val_dice"]
        why = f"{self._title}: val Dice {dice:.3f} at step {step} is {self.behind}"
        return {"step": step, "val_dice": dice, "steps": result["step"], "why": why}


class _Halving(_Noted, ASHAScheduler):
    """Asynchronous successive halving; with several brackets asynchronous Hyperband."""

    behind = f"not among the best 1/{REDUCTION} of that rung"


class _Median(_Noted, MedianStoppingRule):
    """Stops what is worse than the median of the others' running means, once there are three others."""

    behind = "below the median of the others' running means"
