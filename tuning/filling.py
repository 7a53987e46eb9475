"""What a run puts into the store before it trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from dropgen.config import Experiment
from dropgen.features.demand import demand_of
from dropgen.features.extractors import Extractor
from dropgen.features.extractors import build as build_extractor
from dropgen.features.index import StudyIndex
from dropgen.features.precompute import missing_work, precompute
from dropgen.features.store import FeatureStore
from dropgen.features.studies.study import Study
from dropgen.platform.methods import build as build_method
from dropgen.platform.training.bench import choice_record, leaves_source_open, ruled_studies
from dropgen.platform.training.choice import Choice
from dropgen.tuning.space import Plan
from dropgen.tuning.stages import Stages

PRECOMPUTE_WORKERS = 2


def fill_store(
    stages: Stages, experiment: Experiment, planned: Plan, study: Study, root: Path, join_ray: Callable[[], None]
) -> dict[str, Any]:
    """The stages that put what the methods need into the store, one for every intensity rule.

    Returns:
        How many features lie there, and how many of them were extracted now.
    """
    features = experiment.features
    methods = map(build_method, planned.methods)
    needed = features.source != "online" and any(map(leaves_source_open, methods))
    extractor = build_extractor(features.extractor, image_channels=study.image_channels) if needed else None
    store = FeatureStore.of(features, root)
    if extractor is not None and features.source == "auto":
        needed = worth_storing(experiment, study, extractor, root, store)
        extractor = extractor if needed else None
    index = StudyIndex.of(study, extractor, features.dtype, store)
    shown = experiment.model_copy(update={"methods": planned.methods})
    every = {"precompute": (study, index)}
    for rule, ruled in ruled_studies(shown, study, extractor, store).items():
        every[f"precompute {rule}"] = ruled
    total = {"entries": 0, "extracted": 0}
    for name, (prepared, entries) in every.items():
        missing = entries.missing(store)
        work = partial(_stored, experiment, prepared, entries, root, join_ray, bool(missing))
        result = stages.do(name, entries.digest, work, due=bool(missing))
        total = {key: value + result.get(key, 0) for key, value in total.items()}
    return total


def _stored(
    experiment: Experiment, study: Study, index: StudyIndex, root: Path, join_ray: Callable[[], None], missing: bool
) -> tuple[list[Path], Any]:
    """Puts what a study lacks into the store; what has to be told of it."""
    effort, extracted = dict[str, Any](), 0
    if missing:
        join_ray()
        workers = min(PRECOMPUTE_WORKERS, int(ray.cluster_resources()["CPU"]))
        document = precompute(experiment, study, root, workers, features=index.extractor is not None)
        effort = {name: document[name] for name in ("in_flight", "extractor_busy", "workers")}
        extracted = document["computed"]["features"]
    held = len({keys.features for keys in index.keys.values() if keys.features is not None})
    return [], {"cases": len(index.keys), "entries": held, "extracted": extracted} | effort


def worth_storing(experiment: Experiment, study: Study, extractor: Extractor, root: Path, store: FeatureStore) -> bool:
    """Whether an experiment that leaves the source open gets stored features, so that they can be timed at all.

    It does where the disk can hold them and earlier trials were not begun without.
    """
    dtype = experiment.features.dtype
    if (choice := Choice.read(choice_record(experiment, root, study, extractor, store))) is not None:
        return choice.source == "stored"
    works, free = missing_work(study, StudyIndex.of(study, extractor, dtype, store), store), store.place.free()
    return free is None or demand_of(works, study, extractor, dtype).disk <= free
