"""Prepares every case of a study and computes its features into the store, as a Ray job that can be resumed.

Run it as `dropgen precompute EXPERIMENT` or `python features/precompute.py EXPERIMENT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import psutil
from rich.filesize import decimal as size_text

from dropgen.config import Experiment, load_experiment, to_json
from dropgen.console import progress, say, warn
from dropgen.errors import ResourceError, StudyError
from dropgen.features.cluster import connect, require_shared
from dropgen.features.crew import IN_FLIGHT, Effort, efforts, extractor_busy, run_crew
from dropgen.features.demand import Demand, demand_of
from dropgen.features.extractors import build
from dropgen.features.index import StudyIndex
from dropgen.features.store import KINDS, FeatureStore
from dropgen.features.studies.study import Study, load_study, under_rule
from dropgen.features.worker import Outcome, Recipe, Work
from dropgen.manifest import Manifest, digest, git_commit


def precompute(
    experiment: Experiment,
    study: Study,
    root: Path,
    workers: int = 2,
    address: str | None = None,
    features: bool | None = None,
) -> dict[str, Any]:
    """Computes what the store lacks of a study; killed at any moment, the next call goes on from there.

    Reading, preparing and writing go on beside the extractor, in threads of its process. Each worker has a few volumes
    in hand, as many whatever the study's size; how many and how much memory that is, is said before the start.

    Args:
        experiment: Names extractor and stored type.
        study: Its cases.
        root: Output root; the store is `<root>/store` where the experiment names no other. On a cluster a folder that
            all nodes share.
        workers: Processes, each with one CPU.
        address: A running Ray cluster; by default as `cluster.connect`.
        features: Whether features are wanted; by default where the experiment may read them from the store.

    Returns:
        The document of the verb: counts per kind, bytes of the study's entries, seconds, volumes per second, and what
        share of the wall time the extractor was at work.

    Raises:
        StudyError: Cases are broken; all others are done.
        ResourceError: Disk, folder or cluster do not suffice.
        WeightsError: The extractor's weights are missing, here or on a node.
    """
    started = time.perf_counter()
    store = FeatureStore.of(experiment.features, root)
    wanted = experiment.features.source != "online" if features is None else features
    component = experiment.features.extractor if wanted else None
    extractor = None if component is None else build(component, image_channels=study.image_channels)
    index = StudyIndex.of(study, extractor, experiment.features.dtype, store)
    store.sweep()
    in_flight = IN_FLIGHT
    if planned := missing_work(study, index, store):
        workers = max(1, min(workers, len(planned)))
        demand = demand_of(planned, study, extractor, experiment.features.dtype)
        in_flight = _plan(demand, study, store, workers)
    saved = _save_index(index, store)
    # Looked for only now: `dropgen store gc` may have taken what no index referred to until here.
    reused, _ = index.count(store)
    works = missing_work(study, index, store)
    problems: list[str] = []
    spent: list[Effort] = []
    seconds = 0.0
    if works:
        recipe = Recipe(store, study, component, experiment.features.dtype, git_commit())
        try:
            with connect(address, cpus=workers):
                require_shared([file for file in (store.folder / saved, works[0].case.image) if file.is_file()])
                crew_started = time.perf_counter()
                outcomes, problems = _run(works, recipe, workers, in_flight)
                seconds = time.perf_counter() - crew_started
                spent = efforts(outcomes)
        finally:
            store.sweep()  # what workers had begun that were stopped together with this process
    done, missing = index.count(store)
    if problems:
        raise StudyError(
            f"study {study.name}: {len(problems)} of {len(study.cases)} cases could not be stored, the others are:",
            sorted(problems),
        )
    if any(missing.values()):
        raise ResourceError(
            f"{sum(missing.values())} entries that workers wrote are not to be found in {store.location}; on a cluster "
            "--root must be one folder that all nodes share"
        )
    say(f"store {store.location}: all {len(study.cases)} cases of {study.name}, {len(works)} of them computed now")
    busy = extractor_busy(spent)
    if busy is not None:
        say(f"extractor busy {100 * busy:.0f}% of wall time")
    return {
        "store": store.location,
        "study": index.study,
        "computed": {kind: done[kind] - reused[kind] for kind in KINDS},
        "reused": reused,
        "missing": missing,
        "bytes": sum(index.sizes(store).values()),
        "seconds": round(time.perf_counter() - started, 3),
        "volumes_per_second": round(len(works) / seconds, 3) if seconds else None,
        "in_flight": in_flight,
        "extractor_busy": None if busy is None else round(busy, 4),
        "workers": [_told(effort) for effort in spent],
    }


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """The verb `precompute`."""
    experiment = load_experiment(arguments.experiment, arguments.root, arguments.overrides)
    study = load_study(experiment.study, arguments.root)
    config = to_json(experiment)
    manifest = Manifest(arguments.root / experiment.name / "precompute.manifest.json", "precompute", config)
    with manifest.running():
        studies = dict.fromkeys([study.intensity if isinstance(study.intensity, str) else "", *experiment.intensities])
        documents = [
            precompute(
                experiment, under_rule(study, rule) if rule else study, arguments.root, arguments.workers,
                arguments.address,
            )
            for rule in studies
        ]  # fmt: skip
        document = _joined(documents)
        manifest.finish_stage("precompute", digest(config), document["seconds"], [], document)
    return document


def _joined(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The document of a study under several intensity rules: counts are added, the rest is of the study's own rule."""
    first, *others = documents
    joined = dict(first)
    for other in others:
        for counts in ("computed", "reused", "missing"):
            joined[counts] = {kind: joined[counts][kind] + other[counts][kind] for kind in KINDS}
        for name in ("bytes", "seconds"):
            joined[name] += other[name]
        joined["workers"] = [*joined["workers"], *other["workers"]]
    return joined


def missing_work(study: Study, index: StudyIndex, store: FeatureStore) -> list[Work]:
    """What has to be computed, no entry twice even where cases share files."""
    works = []
    held = set(store.everything())
    for case in study.cases:
        keys = index.keys[case.id]
        wanted = [entry for entry in keys.entries() if entry not in held]
        held.update(wanted)
        if wanted:
            works.append(Work(case, keys, tuple(kind for kind, _ in wanted)))
    return works


def _plan(demand: Demand, study: Study, store: FeatureStore, workers: int) -> int:
    """Says what the run will need; returns how many volumes each worker may have in hand.

    Raises:
        ResourceError: The disk cannot hold it.
    """
    free, available = store.place.free(), psutil.virtual_memory().available
    most = min(IN_FLIGHT, -(-demand.volumes // workers))
    in_flight = next((count for count in range(most, 1, -1) if workers * demand.memory(count) <= available), 1)
    memory = workers * demand.memory(in_flight)
    say(
        f"{demand.volumes} volumes to compute with {workers} workers, each with {in_flight} in flight; "
        f"{size_text(demand.disk)} for {store.location}{'' if free is None else f' of {size_text(free)} free'}, "
        f"memory up to {size_text(memory)} of {size_text(available)} available"
    )
    if free is not None and demand.disk > free:
        raise ResourceError(
            f"the missing entries of {study.name} need {size_text(demand.disk)} and {store.location} has "
            f"{size_text(free)} free; free disk space there or choose another folder with --root "
            "or features.store"
        )
    if memory > available:
        warn("the volumes in flight may not fit in memory; if a worker is killed, run again with fewer --workers")
    return in_flight


def _run(works: Sequence[Work], recipe: Recipe, workers: int, in_flight: int) -> tuple[list[Outcome], list[str]]:
    """`run_crew` behind a progress bar."""
    broken = 0
    with progress("volumes") as bars:
        task = bars.add_task(recipe.study.name, total=len(works), note="")

        def show(problem: str | None) -> None:
            nonlocal broken
            broken += problem is not None
            bars.update(task, advance=1, note=f"{broken} broken" if broken else "")

        return run_crew(works, recipe, workers, in_flight, show)


def _told(effort: Effort) -> dict[str, Any]:
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(effort).items()}
    return rounded | {"busy": round(effort.busy, 4)}


def _save_index(index: StudyIndex, store: FeatureStore) -> str:
    try:
        return index.save(store)
    except OSError as error:
        raise ResourceError(
            f"cannot write the index of {index.study} under {store.location}: {error.strerror}; free disk space there "
            "or choose a writable folder with --root"
        ) from error


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["precompute", *sys.argv[1:]]))
