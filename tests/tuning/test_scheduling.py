"""Schedulers under Ray Tune: what they stop is on record and never rerun, and no method or seed pays for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from dropgen.config import Experiment
from dropgen.manifest import read_json
from dropgen.tuning.budget import budget
from dropgen.tuning.scheduling import STOPPED, scheduler
from dropgen.tuning.search import open_bench, search
from dropgen.tuning.space import plan
from dropgen.tuning.standing import known_trials
from tests_support.tiny import tiny_experiment

SCHEDULERS = ("asha", "hyperband", "median")
VALUES = [0.0, 0.2, 0.4, 0.6, 0.8]


def scheduled(root: Path, name: str, **changes: Any) -> Experiment:
    training = {"steps": 18, "validate_every": 2, "learning_rate": 1e-2}
    search = {"scheduler": name, "concurrent": 1}
    methods = [{"name": "dropgen", "p": VALUES}]
    return tiny_experiment(root, **{"methods": methods, "training": training, "search": search, **changes})


def tune_trial(p: float) -> TuneTrial:
    return TuneTrial("trial", config={"point": {"p": p}, "seed": 1}, stub=True)


def started(root: Path, name: str) -> tuple[Any, Any, Any]:
    experiment = scheduled(root, name)
    planned = plan(experiment)
    (space,) = planned.spaces
    bench = open_bench(experiment, root, planned)
    made = scheduler(bench, space)
    assert made is not None
    made.set_search_properties("val_dice", "max")
    return made, bench, space


def report(step: int, dice: float) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, "validated_step": step, "val_dice": dice}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_hopeless_trial_is_stopped_with_a_note_and_a_good_one_is_not(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(np.random, "choice", lambda brackets, p: 0)  # Hyperband's most eager one
    made, bench, space = started(root, name)
    for p in VALUES[:-1]:
        trial = tune_trial(p)
        made.on_trial_add(None, trial)
        for step in range(2, 18, 2):
            assert made.on_trial_result(None, trial, report(step, 0.75)) == TrialScheduler.CONTINUE
    hopeless = tune_trial(VALUES[-1])
    made.on_trial_add(None, hopeless)
    assert made.on_trial_result(None, hopeless, {**report(1, 0.0), "validated_step": 0}) == TrialScheduler.CONTINUE
    assert made.on_trial_result(None, hopeless, report(2, 0.1)) == TrialScheduler.STOP
    folders = [bench.folder(space.trial({"p": p}, 1)) for p in VALUES]
    assert [(folder / STOPPED).exists() for folder in folders] == [False] * 4 + [True]
    note = read_json(folders[-1] / STOPPED)
    assert (note["label"], note["step"], note["val_dice"]) == ("dropgen p=0.8 seed=1", 2, 0.1)
    assert note["why"].lower().startswith(f"{name}: val dice 0.100 at step 2 is ")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_trial_that_failed_is_no_early_stop(root: Path, name: str) -> None:
    made, bench, space = started(root, name)
    for p in VALUES[:-1]:
        trial = tune_trial(p)
        made.on_trial_add(None, trial)
        made.on_trial_result(None, trial, report(2, 0.75))
    failed = tune_trial(VALUES[-1])
    made.on_trial_add(None, failed)
    result = {"error": "x", "error_class": "StoreError", "validated_step": 2, "val_dice": 0.0}
    assert made.on_trial_result(None, failed, result) == TrialScheduler.CONTINUE
    assert not (bench.folder(space.trial({"p": VALUES[-1]}, 1)) / STOPPED).exists()
    made.on_trial_complete(None, failed, result)
    trial = tune_trial(0.5)
    made.on_trial_add(None, trial)
    assert made.on_trial_result(None, trial, report(2, 0.75)) == TrialScheduler.CONTINUE


def test_without_a_scheduler_nothing_is_stopped_and_a_grid_is_known_beforehand(root: Path) -> None:
    experiment = scheduled(root, "none", seeds=[1, 2])
    planned = plan(experiment)
    assert planned.spaces == ()
    assert len(planned.fixed) == 2 * len(VALUES)
    (space,) = plan(scheduled(root, "asha")).spaces
    assert scheduler(open_bench(experiment, root, planned), space) is None


@pytest.mark.nightly
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.usefixtures("ray_session")
def test_a_search_under_a_scheduler_ends_with_all_on_record_and_reruns_nothing(root: Path, name: str) -> None:
    methods = [{"name": "erm"}, {"name": "dropgen", "p": VALUES}]
    experiment = scheduled(root, name, methods=methods, seeds=[1, 2])
    document = search(experiment, root, register=False)
    planned = plan(experiment)
    bench = open_bench(experiment, root, planned)
    assert document["unfinished"] == []
    lines = {line["method"]: line for line in budget(bench, known_trials(bench, planned))}
    assert (lines["erm"]["trials"], lines["erm"]["seeds"], lines["erm"]["stopped"]) == (2, 2, 0)
    ours = lines["dropgen"]
    assert (ours["settings"], ours["trials"], ours["seeds"]) == (5, 6, 2)  # every p once, the best one twice
    folders = [bench.folder(trial) for trial in known_trials(bench, planned)]
    notes = [read_json(folder / STOPPED) for folder in folders if (folder / STOPPED).exists()]
    assert len(notes) == ours["stopped"]
    assert all(0 < note["step"] < 18 and note["label"].endswith("seed=1") for note in notes)
    if name == "asha":  # one trial at a time, p rising: dropout slows learning, so the fastest set the first rungs
        assert notes
    files = {path: path.stat().st_mtime_ns for folder in folders for path in folder.glob("*.json")}
    search(experiment, root, register=False)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(list((root / "tiny" / "trials").iterdir())) == len(folders)
