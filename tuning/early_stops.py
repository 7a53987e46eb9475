"""The record of a search under a scheduler: every setting of the first seed, how far it came and what it reached."""

from __future__ import annotations

from typing import Any

from dropgen.config import Trial
from dropgen.manifest import read_json
from dropgen.platform.train import Workbench
from dropgen.platform.training.trial import DIVERGED, finished
from dropgen.tuning.choice import choose
from dropgen.tuning.scheduling import STOPPED, rungs
from dropgen.tuning.space import Plan, Space
from dropgen.tuning.standing import sampled


def early_stops(bench: Workbench, planned: Plan) -> dict[str, Any] | None:
    """`scheduler, seed, steps, rungs, methods` from what lies in the trials' folders; None without a scheduler.

    Every method has `method`, `chosen` (options) and `trials`: `options, steps, val_dice, stopped, curve`; the curve of
    a stopped trial holds the one Dice that stopped it.
    """
    experiment = bench.experiment
    if experiment.search.scheduler == "none":
        return None
    found = [_line(bench, space) for space in planned.spaces]
    return {
        "scheduler": experiment.search.scheduler,
        "seed": experiment.seeds[0],
        "steps": experiment.training.steps,
        "rungs": rungs(experiment.training),
        "methods": [line for line in found if line is not None],
    }


def _line(bench: Workbench, space: Space) -> dict[str, Any] | None:
    first = bench.experiment.seeds[0]
    trials = [trial for trial, dice in sampled(bench, space) if trial.seed == first and dice is not None]
    results = [result for trial in trials if (result := finished(bench.folder(trial))) is not None]
    if not results:
        return None
    return {
        "method": space.method.name,
        "chosen": choose(results).method.options,
        "trials": [_trial(bench, trial) for trial in trials],
    }


def _trial(bench: Workbench, trial: Trial) -> dict[str, Any]:
    folder, options = bench.folder(trial), trial.method.options
    if (result := finished(folder)) is not None:
        curve = [[*entry] for entry in result["curve"]["validation"]]
        return {"options": options, "steps": result["steps"], "val_dice": result["val_dice"], "stopped": False,
                "curve": curve}  # fmt: skip
    note = read_json(folder / STOPPED)
    if note is None:  # diverged
        lost = read_json(folder / DIVERGED)
        return {"options": options, "steps": lost["step"], "val_dice": 0.0, "stopped": True, "curve": []}
    return {"options": options, "steps": note["steps"], "val_dice": note["val_dice"], "stopped": True,
            "curve": [[note["step"], note["val_dice"]]]}  # fmt: skip
