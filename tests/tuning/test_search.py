"""Searches with real trials on a real Ray: nothing is run twice, nothing is lost, the best is registered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from dropgen.config import Experiment, to_json
from dropgen.errors import CheckpointError, ResourceError
from dropgen.manifest import read_json
from dropgen.platform.tracking import Tracker, fetch
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.tuning.scheduling import STOPPED
from dropgen.tuning.search import search
from tests_support.tiny import tiny_bench, tiny_experiment

REPOSITORY = Path(__file__).resolve().parents[2]
GRID: dict[str, Any] = {"methods": [{"name": "dropgen", "p": [0, 0.25, 0.5]}]}


def finished_files(root: Path) -> dict[Path, int]:
    """Results on disk with the time each was written."""
    return {path: path.stat().st_mtime_ns for path in (root / "tiny" / "trials").glob("*/result.json")}


def children(root: Path, experiment: Experiment) -> list[Any]:
    client = Tracker(root).client
    (mlflow_experiment,) = client.search_experiments(filter_string=f"name = '{experiment.name}'")
    runs = client.search_runs([mlflow_experiment.experiment_id])
    parents = {run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert len(parents) == 1
    found = [run for run in runs if run.info.run_id not in parents]
    assert {run.data.tags["mlflow.parentRunId"] for run in found} <= parents
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_grid_search_trains_every_trial_once_tracks_it_and_registers_the_best(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny_experiment(root, **GRID)
    document = search(experiment, root)
    assert len(document["trials"]) == 3
    best = max(trial["val_dice"] for trial in document["trials"])
    assert document["champion"]["val_dice"] == best
    assert document["model_uri"] == "models:/tiny@champion"
    assert read_json(fetch(root, "tiny") / "segmenter.json") == read_json(
        Path(document["champion"]["bundle"]) / "segmenter.json"
    )

    runs = children(root, experiment)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(run.data.tags["p"] for run in runs) == ["0", "0.25", "0.5"]
    client = Tracker(root).client
    for run in runs:
        (folder,) = (trial["folder"] for trial in document["trials"] if trial["key"] == run.data.tags["dropgen.key"])
        curve = read_json(Path(folder) / "result.json")["curve"]
        logged = client.get_metric_history(run.info.run_id, "val_dice")
        assert [[point.step, point.value] for point in logged] == curve["validation"]
        assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [
            step for step, _ in curve["loss"]
        ]
        assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {
            "config.json", "trial.json", "result.json",
        }  # fmt: skip
    assert not (root / "tiny" / "tune").exists()

    before = finished_files(root)
    assert len(before) == 3
    monkeypatch.setattr("dropgen.tuning.search.connect", lambda *_: pytest.fail("Ray was asked for with nothing to do"))
    again = search(experiment, root)
    assert again["champion"]["key"] == document["champion"]["key"]
    assert finished_files(root) == before
    assert len(children(root, experiment)) == 3


def test_a_search_over_stored_features_without_exact_symmetry_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tiny_bench(tmp_path, features={"extractor": {"name": "random", "channels": 2}}, training={"steps": 3})
    for trial in trials_of(bench.experiment):
        train_trial(bench, trial)  # so that the search needs no Ray
    search(bench.experiment, tmp_path, register=False)
    assert capsys.readouterr().err.count("random has no exact symmetry") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_broken_trial_is_named_with_its_cause_once_the_others_are_done(root: Path) -> None:
    experiment = tiny_experiment(root, **GRID, search={"concurrent": 1})
    bench = Workbench.open(experiment, root)
    broken = trials_of(experiment)[1]
    checkpoint = bench.folder(broken) / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError) as caught:
        search(experiment, root)
    assert "trial 'dropgen p=0.25 seed=1' failed" in str(caught.value)
    assert "is damaged" in str(caught.value)
    assert caught.value.document is not None
    assert caught.value.document["unfinished"] == ["dropgen p=0.25 seed=1"]
    assert len(finished_files(root)) == 2
    assert caught.value.document["model_uri"] == "models:/tiny@champion"


@pytest.mark.nightly
@pytest.mark.usefixtures("ray_session")
def test_a_trial_whose_process_is_killed_is_started_again_and_ends(root: Path) -> None:
    training = {"steps": 200, "checkpoint_every": 5, "validate_every": 100}
    experiment = tiny_experiment(root, methods=[{"name": "dropgen", "p": 0.5}], training=training)
    bench = Workbench.open(experiment, root)
    folder = bench.folder(trials_of(experiment)[0])
    killed: list[int] = []

    def kill() -> None:
        if wait_for(lambda: (folder / "last.ckpt").exists()):
            for process in psutil.Process().children(recursive=True):
                if "ImplicitFunc" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    document = search(experiment, root, register=False)
    killer.join()
    assert killed
    assert [trial["steps"] for trial in document["trials"]] == [200]
    result = read_json(folder / "result.json")
    assert [step for step, _ in result["curve"]["validation"]] == [100, 200]
    assert result["resumed"]
    assert all(step >= 5 for step in result["resumed"])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_tpe_samples_within_the_range_and_counts_what_it_knows_when_resumed(root: Path) -> None:
    methods = [{"name": "dropgen", "p": {"low": 0.1, "high": 0.6}}]
    section = {"sampler": "tpe", "trials": 2, "concurrent": 1}
    first = search(tiny_experiment(root, methods=methods, search=section), root, register=False)
    drawn = {trial["p"] for trial in first["trials"]}
    assert len(drawn) == 2
    assert all(0.1 <= p <= 0.6 for p in drawn)
    before = finished_files(root)
    again = search(tiny_experiment(root, methods=methods, search={**section, "trials": 3}), root, register=False)
    assert len({trial["p"] for trial in again["trials"]} - drawn) == 1
    after = finished_files(root)
    assert {path: after[path] for path in before} == before


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_tpe_tries_every_value_of_a_list_that_fits_its_budget_once(root: Path) -> None:
    experiment = tiny_experiment(root, **GRID, search={"sampler": "tpe", "trials": 5})
    trials = search(experiment, root, register=False)["trials"]
    assert sorted(trial["p"] for trial in trials) == [0, 0.25, 0.5]


@pytest.mark.nightly
@pytest.mark.usefixtures("ray_session")
def test_tpe_explores_with_the_first_seed_and_trains_its_best_point_with_the_others(root: Path) -> None:
    methods = [{"name": "erm"}, {"name": "dropgen", "p": {"low": 0.1, "high": 0.6}}]
    experiment = tiny_experiment(root, methods=methods, search={"sampler": "tpe", "trials": 3}, seeds=[1, 2])
    trials = search(experiment, root, register=False)["trials"]
    explored = [trial for trial in trials if trial["method"] == "dropgen" and trial["seed"] == 1]
    assert len(explored) == 3
    second = [trial["p"] for trial in trials if trial["method"] == "dropgen" and trial["seed"] == 2]
    assert second == [max(explored, key=lambda trial: trial["val_dice"])["p"]]
    assert sorted(trial["seed"] for trial in trials if trial["method"] == "erm") == [1, 2]


@pytest.mark.nightly
@pytest.mark.usefixtures("ray_session")
def test_a_search_that_runs_out_of_time_keeps_a_checkpoint_to_continue_from(root: Path) -> None:
    training = {"steps": 10**6, "checkpoint_every": 5, "validate_every": 10**6}
    experiment = tiny_experiment(root, methods=[{"name": "erm"}], training=training)
    with pytest.raises(ResourceError, match=r"no trial of 'tiny' finished within 0\.4 minutes"):
        search(experiment, root, max_minutes=0.4)
    folder = Workbench.open(experiment, root).folder(trials_of(experiment)[0])
    assert (folder / "last.ckpt").exists()
    assert not (folder / STOPPED).exists()
    (run,) = children(root, experiment)
    assert run.info.status == "KILLED"
    assert "out of time" in run.data.tags["why"]


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_continues_without_repeating_finished_trials(root: Path) -> None:
    experiment = tiny_experiment(root, **GRID, training={"steps": 200, "checkpoint_every": 5, "validate_every": 50})

    def one_is_done_and_another_begun() -> bool:
        return bool(finished_files(root)) and len(list(root.glob("tiny/trials/*/last.ckpt"))) == 2

    file = root / "experiment.yaml"
    file.write_text(yaml.safe_dump(to_json(experiment)))
    command = [sys.executable, "tuning/search.py", str(file), "--root", str(root), "--search.concurrent=1"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (root / "first.log").open("w") as log:
        first = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        try:
            assert wait_for(lambda: one_is_done_and_another_begun() or first.poll() is not None)
        finally:
            first.send_signal(signal.SIGKILL)
            first.wait()
    before = finished_files(root)
    assert 1 <= len(before) < 3, (root / "first.log").read_text()
    second = subprocess.run(
        [*command, "--json"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert second.returncode == 0, second.stderr
    after = finished_files(root)
    assert len(after) == 3
    assert {path: after[path] for path in before} == before
    resumed = [read_json(path)["resumed"] for path in after]
    assert any(step >= 5 for steps in resumed for step in steps), "none went on from its own checkpoint"
    document = yaml.safe_load(second.stdout)
    assert document["model_uri"] == "models:/tiny@champion"
    assert {run.info.status for run in children(root, experiment)} == {"FINISHED"}
    assert len(children(root, experiment)) == 3


def wait_for(condition: Callable[[], bool], seconds: float = 200) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False
