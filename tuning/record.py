"""A search in MLflow: one parent run, one child per trial, written by the driver alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dropgen.config import Trial, to_json
from dropgen.manifest import digest, read_json, write_json
from dropgen.platform.tracking import Tracker
from dropgen.platform.train import Workbench

LOGGED = "mlflow.json"
SUMMARY = ("val_dice", "best_step", "converged", "seconds", "data_wait")
TAGS = ("method", "p", "features", "commit")


class Record:
    """Files trials under the search's parent run, each trial once however often the search is resumed."""

    def __init__(self, bench: Workbench) -> None:
        experiment = bench.experiment
        self.tracker = Tracker(bench.root)
        self._bench = bench
        self._runs: dict[str, str] = {}
        self.parent = self.tracker.start_parent(
            experiment.name,
            f"search {experiment.name}",
            to_json(experiment),
            key=digest([to_json(experiment), bench.index.digest]),
        )

    def progressed(self, trial: Trial, metrics: Mapping[str, Any]) -> None:
        """Adds a trial's latest loss, and its validation Dice where this step was validated."""
        curves = {"loss": metrics["loss"]}
        if "dice" in metrics:
            curves["val_dice"] = metrics["dice"]
        self.tracker.log(self._run(trial), curves, metrics["step"])

    def finished(self, trial: Trial, result: Mapping[str, Any]) -> str:
        """Completes a trial's run from its result and returns the run id; does nothing the second time."""
        folder = self._bench.folder(trial)
        logged = read_json(folder / LOGGED) or {}
        if logged.get("parent") == self.parent:
            return str(logged["run"])
        run = self._run(trial)
        curve = result["curve"]
        self.tracker.log_curve(run, "loss", curve["loss"])
        self.tracker.log_curve(run, "val_dice", curve["validation"])
        self.tracker.log(run, {f"final_{name}": float(result[name]) for name in SUMMARY}, result["steps"])
        self.tracker.tag(run, {name: result[name] for name in TAGS})
        for name in ("trial.json", "result.json"):
            self.tracker.attach(run, folder / name)
        self.tracker.finish(run)
        write_json(folder / LOGGED, {"parent": self.parent, "run": run})
        return run

    def given_up(self, trial: Trial, status: str, why: str) -> None:
        """Ends the run of a trial that has no result: KILLED (early stop) or FAILED."""
        run = self._run(trial)
        self.tracker.tag(run, {"why": why})
        self.tracker.finish(run, status)

    def close(self, manifest: Path, champion: Mapping[str, Any] | None) -> None:
        """Ends the parent run."""
        if champion is not None:
            self.tracker.tag(self.parent, {"champion": champion["label"], "val_dice": champion["val_dice"]})
        self.tracker.attach(self.parent, manifest)
        self.tracker.finish(self.parent)

    def _run(self, trial: Trial) -> str:
        key = self._bench.key(trial)
        if key not in self._runs:
            settings = to_json(self._bench.experiment) | {"methods": None, "seeds": None, "trial": to_json(trial)}
            config = {name: value for name, value in settings.items() if value is not None}
            self._runs[key] = self.tracker.start_child(self.parent, trial.label, config, key=key)
        return self._runs[key]
