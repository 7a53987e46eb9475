"""Trials as Ray Tune runs them: one process per trial, reports to the driver, early stops on record."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Tune would swallow Ctrl-C and end as if the search were complete.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# Its newer output prints a table to stdout even when it is told to be silent.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.search.searcher import Searcher

from dropgen import errors
from dropgen.config import Trial, to_json
from dropgen.errors import DropGenError, ResourceError
from dropgen.platform.train import Progress, Workbench, train_trial
from dropgen.platform.training.trial import finished
from dropgen.tuning.disk import Disk
from dropgen.tuning.record import Record
from dropgen.tuning.resources import Shape
from dropgen.tuning.scheduling import STOPPED, scheduler
from dropgen.tuning.space import Space
from dropgen.tuning.view import View

# A process that is lost (out of memory, a node gone) is started once more and continues from last.ckpt.
MAX_RESTARTS = 1


@dataclass(frozen=True)
class Failure:
    """A trial that ended in an error."""

    label: str
    error: Exception


@dataclass(frozen=True)
class Desk:
    """What every batch of trials of one search is run with."""

    bench: Workbench
    shape: Shape
    record: Record
    view: View
    disk: Disk


def run_fixed(desk: Desk, trials: list[Trial], seconds: float | None) -> list[Failure]:
    """Trains exactly these trials to their end and returns those that failed."""
    space = {"trial": tune.grid_search([to_json(trial) for trial in trials])}
    return _fit(desk, None, space, tune.TuneConfig(time_budget_s=seconds))


def run_sampled(
    desk: Desk, space: Space, seed: int, searcher: Searcher, samples: int, seconds: float | None
) -> list[Failure]:
    """Trains `samples` trials at points that the searcher suggests (as `point/<option>`), under the scheduler."""
    return _fit(
        desk, space, {"seed": seed}, tune.TuneConfig(search_alg=searcher, num_samples=samples, time_budget_s=seconds)
    )


def _fit(desk: Desk, space: Space | None, params: dict[str, Any], config: tune.TuneConfig) -> list[Failure]:
    bench = desk.bench
    if desk.disk.full():
        return []
    config.metric, config.mode = "val_dice", "max"
    config.max_concurrent_trials = desk.shape.concurrent
    config.reuse_actors = True
    config.trial_dirname_creator = lambda trial: str(trial.trial_id)
    if space is not None:
        config.scheduler = scheduler(bench, space)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    folder = bench.root / bench.experiment.name
    trainable = tune.with_parameters(_train, bench=bench, space=space)
    watch = _Watch(desk, space)
    try:
        tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory([dict(desk.shape.resources)])),
            param_space=params,
            tune_config=config,
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
                callbacks=[watch],
                stop=_DiskStopper(desk.disk),
                verbose=0,
            ),
        ).fit()
    finally:
        for trial in watch.running.values():
            why = "the disk is nearly full" if desk.disk.said else "out of time or interrupted"
            desk.record.given_up(trial, "KILLED", f"{why}; the next search continues it")
        # Trials keep their own checkpoints and results; Tune's logs repeat them.
        shutil.rmtree(folder / "tune", ignore_errors=True)
    return watch.failures


def _train(config: dict[str, Any], bench: Workbench, space: Space | None) -> None:
    """The body of a Tune trial."""
    judged: dict[str, float] = {"validated_step": 0, "val_dice": 0.0}

    def report(progress: Progress) -> None:
        judged.update(validated_step=progress.validated_step, val_dice=progress.best_dice)
        metrics = {"step": progress.step, "loss": progress.loss}
        if progress.val_dice is not None:
            metrics["dice"] = progress.val_dice
        # The last step is reported once the result is on disk: a scheduler that stops a trial on
        # its last report would otherwise throw the finished training away.
        if progress.step < progress.steps:
            tune.report(metrics | judged)

    try:
        result = train_trial(bench, _trial(config, space), report)
    except Exception as error:
        # Tune starts a trial again whatever it died of; only a lost process is worth that.
        text = " ".join(str(error).split())
        tune.report({"error": text, "error_class": type(error).__name__, **judged})
    else:
        steps, loss = result["curve"]["loss"][-1]
        tune.report({"step": steps, "loss": loss, "validated_step": steps, "val_dice": result["val_dice"]})


def _trial(config: Mapping[str, Any], space: Space | None) -> Trial:
    if space is None:
        return Trial.model_validate(config["trial"])
    return space.trial(config["point"], config["seed"])


class _DiskStopper(tune.Stopper):
    """Ends all trials before the disk is full; each continues from its own checkpoint."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as of `_Watch`

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._disk.full()


class _Watch(tune.Callback):
    """Hands what trials report to the screen and to MLflow.

    Attributes:
        failures: Trials that ended in an error.
        running: Trials that began and have not ended, by label.
    """

    def __init__(self, desk: Desk, space: Space | None) -> None:
        self._desk, self._space = desk, space
        self.failures: list[Failure] = []
        self.running: dict[str, Trial] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; a screen and a database cannot be, and nothing restores them

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        own = _trial(trial.config, self._space)
        self.running[own.label] = own

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        if "error" not in result:
            own = _trial(trial.config, self._space)
            self._desk.view.progressed(own, result)
            self._desk.record.progressed(own, result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        own = _trial(trial.config, self._space)
        folder = self._desk.bench.folder(own)
        result = finished(folder)
        if "error" in trial.last_result:
            self._fail(own, _reported_error(trial.last_result))
        elif result is not None:
            self._desk.record.finished(own, result)
            self._ended(own)
        elif (folder / STOPPED).exists():
            self._desk.record.given_up(own, "KILLED", "stopped early")
            self._ended(own)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        text = f"its process was lost {MAX_RESTARTS + 1} times, for want of memory as a rule; lower --search.concurrent"
        lost = isinstance(trial.get_error(), RayActorError)
        self._fail(_trial(trial.config, self._space), ResourceError(text) if lost else trial.get_error())

    def _fail(self, trial: Trial, error: Exception) -> None:
        self.failures.append(Failure(trial.label, error))
        self._desk.record.given_up(trial, "FAILED", str(error))
        self._ended(trial)

    def _ended(self, trial: Trial) -> None:
        self.running.pop(trial.label, None)
        self._desk.view.ended(trial)


def _reported_error(result: Mapping[str, Any]) -> Exception:
    kind = getattr(errors, result["error_class"], None)
    return kind(result["error"]) if kind else RuntimeError(f"{result['error_class']}: {result['error']}")


def failure_error(failures: list[Failure], command: str) -> Exception:
    """One sentence about the first failed trial, of the same kind as its cause."""
    first = failures[0]
    others = f" ({len(failures) - 1} more failed)" if len(failures) > 1 else ""
    text = f"trial '{first.label}' failed: {' '.join(str(first.error).split())}{others}; the others are done, {command}"
    return type(first.error)(text) if isinstance(first.error, DropGenError) else RuntimeError(text)
