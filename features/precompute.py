"""Prepares every case of a study and computes its features into the store, as a Ray job that can be resumed.

Run it as `dropgen precompute EXPERIMENT` or `python features/precompute.py EXPERIMENT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import ray
from ray.exceptions import RayActorError, RayTaskError
from rich.filesize import decimal as size_text

from dropgen.config import Experiment, load_experiment
from dropgen.console import progress, say, warn
from dropgen.errors import ResourceError, StudyError, VolumeError
from dropgen.features.cluster import connect
from dropgen.features.extractors import Extractor, build
from dropgen.features.extractors.tiles import peak_bytes
from dropgen.features.index import StudyIndex
from dropgen.features.store import KINDS, FeatureStore
from dropgen.features.studies.prepare import Grid
from dropgen.features.studies.study import Study, load_study
from dropgen.features.studies.volume import read_grid
from dropgen.features.worker import Recipe, Work, Worker
from dropgen.manifest import git_commit


def precompute(
    experiment: Experiment,
    study: Study,
    root: Path,
    workers: int = 2,
    address: str | None = None,
    features: bool | None = None,
) -> dict[str, Any]:
    """Computes what the store lacks of a study; killed at any moment, the next call goes on from there.

    As many volumes are in memory as there are workers, whatever the study's size.

    Args:
        experiment: Names extractor and stored type.
        study: Its cases.
        root: Output root; the store is `<root>/store` where the experiment names no other.
        workers: Processes, each with one CPU.
        address: A running Ray cluster; by default as `cluster.connect`.
        features: Whether features are wanted; by default where the experiment reads them from the store.

    Returns:
        The document of the verb: counts per kind, bytes of the study's entries, seconds, volumes per second.

    Raises:
        StudyError: Cases are broken; all others are done.
        ResourceError: Disk, folder or cluster do not suffice.
    """
    started = time.perf_counter()
    store = FeatureStore.of(experiment.features, root)
    component = experiment.features.extractor if _wants_features(experiment, features) else None
    extractor = None if component is None else build(component)
    index = StudyIndex.of(study, extractor, experiment.features.dtype, store)
    store.sweep()
    if planned := missing_work(study, index, store):
        workers = max(1, min(workers, len(planned)))
        _plan(planned, study, extractor, experiment.features.dtype, store, workers)
    _save_index(index, store)
    # Looked for only now: `dropgen store gc` may have taken what no index referred to until here.
    reused, _ = index.count(store)
    works = missing_work(study, index, store)
    problems: list[str] = []
    seconds = 0.0
    if works:
        recipe = Recipe(store, study, component, experiment.features.dtype, git_commit())
        with connect(address, cpus=workers):
            extraction_started = time.perf_counter()
            problems = _run(works, recipe, workers)
            seconds = time.perf_counter() - extraction_started
    done, missing = index.count(store)
    if problems:
        raise StudyError(
            f"study {study.name}: {len(problems)} of {len(study.cases)} cases could not be stored, the others are:",
            sorted(problems),
        )
    computed = {kind: done[kind] - reused[kind] for kind in KINDS}
    say(f"store {store.location}: all {len(study.cases)} cases of {study.name}, {len(works)} of them computed now")
    return {
        "store": store.location,
        "study": index.study,
        "computed": computed,
        "reused": reused,
        "missing": missing,
        "bytes": sum(index.sizes(store).values()),
        "seconds": round(time.perf_counter() - started, 3),
        "volumes_per_second": round(len(works) / seconds, 3) if seconds else None,
    }


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """The verb `precompute`."""
    experiment = load_experiment(arguments.experiment, arguments.root, arguments.overrides)
    study = load_study(experiment.study, arguments.root)
    return precompute(experiment, study, arguments.root, arguments.workers, arguments.address)


def _wants_features(experiment: Experiment, features: bool | None) -> bool:
    return experiment.features.source == "stored" if features is None else features


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


def _plan(
    works: Sequence[Work], study: Study, extractor: Extractor | None, dtype: str, store: FeatureStore, workers: int
) -> None:
    """Says what the run will need, and refuses a disk that cannot hold it."""
    channels = 0 if extractor is None else extractor.channels
    voxel_bytes = {"volumes": 4, "labels": 1, "features": channels * np.dtype(dtype).itemsize}
    disk = memory = 0
    for work in works:
        try:
            native = read_grid(work.case.image)
            shape = Grid.of(native, study.preparation).shape
        except VolumeError:
            continue  # its worker will say what is wrong with it, once the others are done
        voxels = math.prod(shape)
        disk += voxels * sum(voxel_bytes[kind] for kind in work.kinds)
        # float32, four at a time: as read, oriented, resampled, scaled
        extraction = 0 if extractor is None else peak_bytes(extractor, shape)
        memory = max(memory, 4 * 4 * max(voxels, native.array.size) + extraction)
    free = store.place.free()
    available = psutil.virtual_memory().available
    say(
        f"{len(works)} volumes to compute with {workers} workers; "
        f"{size_text(disk)} for {store.location}{'' if free is None else f' of {size_text(free)} free'}, "
        f"memory up to {size_text(memory)} for each volume in flight ({workers} at once) "
        f"of {size_text(available)} available"
    )
    if free is not None and disk > free:
        raise ResourceError(
            f"the missing entries of {study.name} need {size_text(disk)} and {store.location} has "
            f"{size_text(free)} free; free disk space there or choose another folder with --root "
            "or features.store"
        )
    if memory * workers > available:
        warn("the volumes in flight may not fit in memory; if a worker is killed, run again with fewer --workers")


def _run(works: Sequence[Work], recipe: Recipe, workers: int) -> list[str]:
    """Runs all work on Ray actors, one case per actor at a time; returns what was wrong with broken cases.

    An actor holds no queue of its own, so the case it died of is known.
    """
    remote: Any = ray.remote(num_cpus=1)(Worker)
    queue = deque(works)
    attempts: Counter[str] = Counter()
    problems: list[str] = []
    crashes: list[RuntimeError] = []
    idle = [remote.remote(recipe) for _ in range(workers)]
    busy: dict[Any, tuple[Any, Work]] = {}
    with progress("volumes") as bars:
        task = bars.add_task(recipe.study.name, total=len(works), note="")
        while queue or busy:
            while queue and idle:
                actor, work = idle.pop(), queue.popleft()
                busy[actor.run.remote(work)] = (actor, work)
            (finished,), _ = ray.wait(list(busy), num_returns=1)
            actor, work = busy.pop(finished)
            try:
                problem = ray.get(finished)
            except RayActorError as error:
                actor = remote.remote(recipe)
                attempts[work.case.id] += 1
                if attempts[work.case.id] < 2:
                    queue.append(work)
                    idle.append(actor)
                    continue
                cause = str(error).strip().splitlines()[0]
                problem = f"case {work.case.id}: its worker died twice, likely out of memory ({cause}); try --workers 1"
            except RayTaskError as error:
                if isinstance(error.cause, ResourceError):
                    raise ResourceError(str(error.cause)) from None
                problem = None
                crashes.append(RuntimeError(f"case {work.case.id}: {type(error.cause).__name__}: {error.cause}"))
            idle.append(actor)
            if problem:
                problems.append(problem)
            bars.update(task, advance=1, note=f"{len(problems)} broken" if problems else "")
    if crashes:
        raise crashes[0]
    return problems


def _save_index(index: StudyIndex, store: FeatureStore) -> None:
    try:
        index.save(store)
    except OSError as error:
        raise ResourceError(
            f"cannot write the index of {index.study} under {store.location}: {error.strerror}; free disk space there "
            "or choose a writable folder with --root"
        ) from error


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["precompute", *sys.argv[1:]]))
