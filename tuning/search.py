"""`dropgen search`: Ray Tune and Optuna over p and every other hyperparameter; the best trial is registered."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import fcntl
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from optuna.samplers import TPESampler
from ray.tune.search.optuna import OptunaSearch

from dropgen.config import Experiment, Trial, load_experiment, to_json, with_seeds
from dropgen.console import progress, say, warn
from dropgen.errors import ConfigError, DivergenceError, ResourceError
from dropgen.features.cluster import connect
from dropgen.features.precompute import precompute
from dropgen.features.studies.study import load_study
from dropgen.manifest import Manifest
from dropgen.platform.external import trained_here
from dropgen.platform.tracking import register as register_bundle
from dropgen.platform.train import Workbench, trials_of
from dropgen.platform.training.auto import settle
from dropgen.platform.training.inexact import warn_of_inexact
from dropgen.tuning.choice import PROPOSED, champion, choose
from dropgen.tuning.disk import Disk
from dropgen.tuning.record import Record
from dropgen.tuning.resources import shape
from dropgen.tuning.space import Plan, Space, plan
from dropgen.tuning.standing import is_open, known_divergences, known_results, left, open_labels, sampled, samples
from dropgen.tuning.trials import Desk, Failure, failure_error, run_fixed, run_sampled
from dropgen.tuning.view import View


def search(
    experiment: Experiment,
    root: Path,
    *,
    address: str | None = None,
    max_minutes: float | None = None,
    register: bool = True,
) -> dict[str, Any]:
    """Trains every unfinished trial of an experiment and picks the best by validation Dice.

    A trial that is finished, diverged or was stopped early is never run again; one that was interrupted continues
    from its own checkpoint. One that diverges is on record and leaves the others alone. The tpe sampler, and every
    scheduler, explores with the first seed and trains each method's best point to the end with the others.

    Args:
        experiment: Its `search` section says how; the store must cover its study.
        root: Output root.
        address: Running Ray cluster; a local one by default.
        max_minutes: Stops after this time; what is unfinished continues in the next search.
        register: Whether `models:/<experiment name>@champion` is pointed at the best trial.

    Returns:
        `experiment`, `champion`, `chosen`, `trials`, `diverged`, `unfinished`, `model_uri`, `tracking_uri`, `seconds`.

    Raises:
        ConfigError: A method or its range is wrong.
        ResourceError: Not even one trial fits on the cluster, none finished in time, or the disk would not hold what is
            still to be trained; what is finished is registered and the same command continues.
        DivergenceError: Every trial diverged.
        DropGenError: A trial failed; raised after the others have ended, with their document.
    """
    began = time.monotonic()
    minutes = max_minutes or experiment.search.max_minutes
    deadline = began + 60 * minutes if minutes else math.inf
    planned = plan(experiment)
    bench = open_bench(experiment, root, planned)
    path = root / experiment.name / "search.manifest.json"
    manifest = Manifest(path, "search", to_json(experiment))
    with exclusive(root / experiment.name / "search.lock"), manifest.running():
        if bench.choice is not None:
            bench.choice.note(manifest)
        warn_of_inexact(bench, trials_of(bench.experiment))
        record = Record(bench)
        disk = Disk(bench, experiment.search.concurrent, lambda: left(bench, planned))
        failures = _train_all(bench, planned, record, disk, address, deadline)
        results = known_results(bench, planned)
        runs = {}
        for trial, result in results:
            runs[result["key"]] = record.finished(trial, result)
        best = champion([result for _, result in results]) if results else None
        record.close(path, best)
    unfinished = [trial.label for trial in planned.fixed if is_open(bench, trial)]
    unfinished += [label for space in planned.spaces for label in open_labels(bench, space)]
    diverged = known_divergences(bench, planned)
    document: dict[str, Any] = {
        "experiment": experiment.name,
        "champion": best and {**_brief(best), "run": runs[best["key"]]},
        "chosen": best and choose([result for _, result in results]).method.label,
        "trials": [_brief(result) for _, result in results],
        "diverged": diverged,
        "unfinished": unfinished,
        "model_uri": None,
        "tracking_uri": record.tracker.uri,
    }
    if best and register:
        document["model_uri"] = register_bundle(root, Path(best["bundle"]), experiment.name, run_id=runs[best["key"]])
    document["seconds"] = round(time.monotonic() - began, 2)
    if failures:
        error = failure_error(failures, "the same command tries it again")
        error.document = document  # type: ignore[attr-defined]
        raise error
    if disk.said is not None:
        full = ResourceError(disk.said)
        full.document = document
        raise full
    if best is None and diverged:
        raise DivergenceError(
            f"every trial of '{experiment.name}' diverged, {diverged[0]['label']}: {diverged[0]['why']}"
        )
    if best is None:
        limit = f" within {minutes:g} minutes" if minutes else ""
        raise ResourceError(f"no trial of '{experiment.name}' finished{limit}; the same command continues them")
    return document


def open_bench(experiment: Experiment, root: Path, planned: Plan) -> Workbench:
    """The workbench of an experiment whose methods may hold ranges that only a search understands."""
    experiment = experiment.model_copy(update={"methods": planned.methods})
    settle(experiment, root)
    return Workbench.open(experiment, root)


def _train_all(
    bench: Workbench, planned: Plan, record: Record, disk: Disk, address: str | None, deadline: float
) -> list[Failure]:
    experiment, training = bench.experiment, bench.experiment.training
    todo = [trial for trial in planned.fixed if is_open(bench, trial)]
    if (not todo and not planned.spaces) or disk.full():
        return []
    failures: list[Failure] = []
    with connect(address, training.workers * training.threads), progress("steps") as bars:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total = len(planned.fixed) + sum(samples(bench, space) + len(experiment.seeds) - 1 for space in planned.spaces)
        view = View(bars, training.steps, total, [result for _, result in known_results(bench, planned)])
        desk = Desk(bench, shape(training, experiment.search.concurrent, nodes), record, view, disk)
        if todo:
            failures += run_fixed(desk, todo, _left(deadline))
        for space in planned.spaces:
            failures += _explore(desk, space, deadline)
    return [failure for failure in failures if not isinstance(failure.error, DivergenceError)]


def _explore(desk: Desk, space: Space, deadline: float) -> list[Failure]:
    """Samples a space with the first seed, then trains its best point with the other seeds."""
    bench = desk.bench
    seed, *others = bench.experiment.seeds
    known = [(trial, dice) for trial, dice in sampled(bench, space) if trial.seed == seed]
    done = [(trial, dice) for trial, dice in known if dice is not None]
    missing = samples(bench, space) - len(done)
    failures: list[Failure] = []
    if missing > 0 and time.monotonic() < deadline:
        ahead = [_prefixed(space, trial) for trial, dice in known if dice is None]
        if space.size <= samples(bench, space):  # a sampler would draw some points twice and others never
            every = [_prefixed(space, space.trial(point, seed)) for point in space.points()]
            begun = [_prefixed(space, trial) for trial, _ in known]
            ahead += [point for point in every if point not in begun]
        searcher = OptunaSearch(
            {f"point/{key}": distribution for key, distribution in space.distributions.items()},
            metric="val_dice",
            mode="max",
            points_to_evaluate=ahead,
            # A resumed search must not draw the very points again that it began with.
            sampler=TPESampler(seed=seed + len(done), n_startup_trials=max(3, samples(bench, space) // 4)),
        )
        for trial, dice in done:
            searcher.add_evaluated_point(_prefixed(space, trial), dice)
        failures = run_sampled(desk, space, seed, searcher, missing, _left(deadline))
    results = [result for _, result in known_results(bench, Plan((), (space,))) if result["seed"] == seed]
    if not results or time.monotonic() >= deadline:
        return failures
    best = choose(results).method
    todo = [trial for other in others if is_open(bench, trial := Trial(method=best, seed=other))]
    return failures + (run_fixed(desk, todo, _left(deadline)) if todo else [])


def _prefixed(space: Space, trial: Trial) -> dict[str, Any]:
    return {f"point/{key}": value for key, value in (space.point(trial.method) or {}).items()}


def _left(deadline: float) -> float | None:
    return None if math.isinf(deadline) else max(1.0, deadline - time.monotonic())


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "curve"}


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keeps a second search out of the same trial folders; the lock goes with the process.

    Raises:
        ResourceError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(f"another search works in {path.parent}; wait, or choose another --root") from None
        yield


def refuse_measure(arguments: argparse.Namespace) -> None:
    """Raises ConfigError where `--measure` stands without `--dry-run`: what is run anyway needs no estimate."""
    if arguments.measure:
        raise ConfigError("--measure belongs to --dry-run, which tells the hours; add it or leave both out")


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen search [EXPERIMENT]`."""
    root = arguments.root
    if "working_dir_files" in root.parts:
        warn(f"{root} lies in Ray's temporary copy of the job; give --root or DROPGEN_ROOT to keep the results")
    if arguments.methods is not None:
        from dropgen.tuning.comparison import command as compare  # the comparison stands on the search

        return compare(arguments)
    if arguments.defaults:
        raise ConfigError("--defaults belongs to --methods, which names what to compare; add --methods all")
    if arguments.dry_run:
        from dropgen.tuning.dry_run_page import tell_search  # the dry run stands on the search

        return tell_search(arguments)
    refuse_measure(arguments)
    if arguments.experiment is None:
        from dropgen.tuning.demo import demo_experiment  # the demo stands on the search

        experiment = demo_experiment(root, arguments.overrides)
        methods = tuple(method for method in experiment.methods if method.name == PROPOSED)
        experiment = experiment.model_copy(update={"methods": methods})
        precompute(experiment, load_study(experiment.study, root), root)
    else:
        experiment = trained_here(load_experiment(arguments.experiment, root, arguments.overrides))
    if arguments.seeds is not None:
        experiment = with_seeds(experiment, arguments.seeds)
    document = search(experiment, root, address=arguments.address, max_minutes=arguments.max_minutes)
    for trial in document["trials"]:
        mark = "" if trial["converged"] else ", not converged"
        say(f"{trial['label']}: val Dice {100 * trial['val_dice']:.1f}{mark}, "
            f"waited {100 * trial['data_wait']:.1f}% for data")  # fmt: skip
    for trial in document["diverged"]:
        say(f"{trial['label']}: diverged at step {trial['step']}")
    say(f"best: {document['chosen']}, registered as {document['model_uri']} from {document['champion']['folder']}")
    say(f"runs: mlflow ui --backend-store-uri {document['tracking_uri']}")
    if arguments.experiment is None:
        say("your own: dropgen precompute EXPERIMENT.yaml, then dropgen search EXPERIMENT.yaml")
    return document


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["search", *sys.argv[1:]]))
