"""`dropgen train`: trains trials of an experiment one after the other, without a search."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Callable
from typing import Any

from dropgen.config import Experiment, Trial, load_experiment, to_json
from dropgen.console import progress, say
from dropgen.errors import ConfigError, closest
from dropgen.manifest import Manifest
from dropgen.platform.training.auto import settle
from dropgen.platform.training.bench import Workbench, trials_of
from dropgen.platform.training.distributed import train_distributed
from dropgen.platform.training.inexact import warn_of_inexact
from dropgen.platform.training.loop import Progress
from dropgen.platform.training.trial import finished, run_trial
from dropgen.platform.training.workers import Workers

__all__ = ["Progress", "Workbench", "choose_trials", "command", "train_trial", "trials_of"]


def train_trial(
    bench: Workbench,
    trial: Trial,
    on_progress: Callable[[Progress], None] | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """Trains one trial to its end, or returns its result at once when it has ended before.

    One worker trains in this process; more go through Ray Train.
    """
    report = on_progress or (lambda progress: None)
    if (done := finished(bench.folder(trial))) is not None:
        return done
    if bench.experiment.training.workers == 1:
        return run_trial(bench, trial, Workers(), report)
    return train_distributed(bench, trial, report, address)


def choose_trials(experiment: Experiment, method: str | None, seed: int | None) -> tuple[Trial, ...]:
    """The experiment's trials with this method label and seed; all where None.

    Raises:
        ConfigError: There is no such trial.
    """
    trials = trials_of(experiment)
    labels = {trial.method.label for trial in trials}
    if method is not None and method not in labels:
        raise ConfigError(f"no method '{method}' in experiment '{experiment.name}'{closest(method, labels)}")
    if seed is not None and seed not in experiment.seeds:
        raise ConfigError(f"no seed {seed} in experiment '{experiment.name}'; it has {list(experiment.seeds)}")
    return tuple(
        trial
        for trial in trials
        if (method is None or trial.method.label == method) and (seed is None or trial.seed == seed)
    )


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen train EXPERIMENT`."""
    from dropgen.platform.external import trained_here  # it stands on this module

    experiment = trained_here(load_experiment(arguments.experiment, arguments.root, arguments.overrides))
    trials = choose_trials(experiment, arguments.method, arguments.seed)
    settle(experiment, arguments.root)
    bench = Workbench.open(experiment, arguments.root)
    warn_of_inexact(bench, trials)
    results = []
    record = Manifest(arguments.root / experiment.name / "train.manifest.json", "train", to_json(experiment))
    with record.running(), progress("steps") as bars:
        if bench.choice is not None:
            bench.choice.note(record)
        for trial in trials:
            bar = bars.add_task(trial.label, total=experiment.training.steps, note="")

            def show(now: Progress, bar: Any = bar) -> None:
                note = f"loss {now.loss:.3f}" + (f", val Dice {now.val_dice:.3f}" if now.val_dice is not None else "")
                bars.update(bar, completed=now.step, note=note)

            result = train_trial(bench, trial, show, arguments.address)
            bars.update(bar, completed=experiment.training.steps, note=f"val Dice {result['val_dice']:.3f}")
            results.append(result)
    for result in results:
        mark = "" if result["converged"] else ", not converged"
        say(f"{result['label']}: val Dice {100 * result['val_dice']:.1f} at step {result['best_step']}{mark}, "
            f"waited {100 * result['data_wait']:.1f}% for data, {result['folder']}")  # fmt: skip
    return {"experiment": experiment.name, "trials": results}


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["train", *sys.argv[1:]]))
