"""Times the training step of ERM and of other methods, their features stored or computed online, in one process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
import yaml

from dropgen.config import Component, Experiment, Trial, load_experiment
from dropgen.errors import ConfigError, StoreError, WeightsError
from dropgen.features.bench.timing import require_repeats, rounds
from dropgen.features.extractors import build as build_extractor
from dropgen.features.index import StudyIndex
from dropgen.features.store import FeatureStore
from dropgen.features.studies.phantom import PhantomSpec, make_phantom_study
from dropgen.features.studies.study import load_study
from dropgen.features.worker import Recipe, Work, Worker
from dropgen.manifest import git_commit
from dropgen.platform.catalogue import choose_names
from dropgen.platform.methods import METHODS
from dropgen.platform.methods import build as build_method
from dropgen.platform.training.bench import Workbench, require_trainable, trials_of
from dropgen.platform.training.contender import Contender
from dropgen.platform.training.trial import choose_device

CASES = 4
DEFAULTS: dict[str, Any] = {
    "name": "bench",
    "methods": [{"name": "erm"}, {"name": "dropgen", "p": [0.5, 0.75]}],
    "seeds": [0],
    "training": {"batch": 2},
    "selection": {"rule": "target_validation"},
}


def prepare(folder: Path, crop: int, overrides: tuple[str, ...], methods: str | None = None) -> Experiment:
    """Writes a phantom study for cubic crops and its stored features into a folder that is empty or missing.

    Args:
        folder: The study goes to `study/`, the entries to `store/`.
        crop: Voxels per edge; the volumes are half as long again.
        overrides: `--section.key=value`, for example `--network.base=8`.
        methods: What is timed beside ERM, "all" or names with commas between them; DropGen at two p when None.

    Raises:
        ConfigError: An override is wrong, a method unknown, or the crop does not fit.
    """
    spec = PhantomSpec(size=crop * 3 // 2, crop=crop, train_subjects=CASES, val_subjects=1, test_subjects=0)
    study_path = make_phantom_study(folder / "study", spec=spec)
    settings = folder / "experiment.yaml"
    timed = {} if methods is None else {"methods": _beside_erm(choose_names(methods, tuple(METHODS)))}
    settings.write_text(yaml.safe_dump({**DEFAULTS, **timed, "study": str(study_path)}))
    experiment = load_experiment(settings, folder, overrides)
    study, store = load_study(experiment.study, folder), FeatureStore.of(experiment.features, folder)
    require_trainable(experiment.model_copy(update={"methods": (Component.of("erm"),)}), study)
    component, dtype = experiment.features.extractor, experiment.features.dtype
    index = StudyIndex.of(study, build_extractor(component), dtype, store)
    worker = Worker(Recipe(store, study, component, dtype, git_commit()))
    for case in study.cases:
        keys = index.keys[case.id]
        if problem := worker.run(Work(case, keys, tuple(kind for kind, _ in keys.entries()))).problem:
            raise StoreError(problem)
    return experiment


def contenders_of(experiment: Experiment, root: Path) -> tuple[list[Contender], list[dict[str, Any]]]:
    """A network in training for every method of the experiment, once per source of features.

    Returns:
        The networks, and a row for every method that cannot be trained here, whose `unavailable` says why.
    """
    torch.set_num_threads(experiment.training.threads)
    found: list[Contender] = []
    unavailable = []
    for trial in trials_of(experiment):
        try:
            found += [_contender(experiment, root, trial, source) for source in _sources(trial)]
        except (ConfigError, WeightsError) as error:
            times: dict[str, Any] = dict.fromkeys(("median_s", "ratio_to_erm", "data_wait"))
            row = {"bench": "step", "method": trial.method.label, "features": "none", **times, "raw_s": []}
            unavailable.append(row | {"unavailable": str(error)})
    return found, unavailable


def _sources(trial: Trial) -> tuple[Literal["stored", "online"], ...]:
    method = build_method(trial.method)
    if not method.needs_features:
        return ("stored",)
    return ("online",) if method.needs_online else ("stored", "online")


def _contender(experiment: Experiment, root: Path, trial: Trial, source: Literal["stored", "online"]) -> Contender:
    device = choose_device(experiment.training.device)
    features = experiment.features.model_copy(update={"source": source})
    alone = experiment.model_copy(update={"features": features, "methods": (trial.method,)})
    return Contender.of(Workbench.open(alone, root), trial, device)


def bench_step(
    contenders: list[Contender], repeats: int, on_round: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Times the contenders in blocks of steps, one block each a round.

    Single steps cannot alternate: a loader works ahead, so its work would fall into another's step. During a block
    one loader is alive. A round gives one value, the block's mean, in which a stall cannot hide.

    Returns:
        Rows `bench, method, features, median_s, ratio_to_erm, data_wait, raw_s, unavailable` (None); `data_wait` is the
        share of all timed seconds spent waiting for a batch.

    Raises:
        ConfigError: There are fewer than 5 repeats, or no ERM to compare with.
        StoreError: Stored and online features of one method would not be of the same crops.
    """
    require_repeats(repeats)
    if "erm" not in {contender.method for contender in contenders}:
        raise ConfigError("bench step compares with ERM: name a method erm without options")
    _require_same_samples(contenders)
    for order in rounds(contenders, repeats, np.random.default_rng(0)):
        for contender in order:
            contender.run()
            on_round()
    erm = next(median(contender.seconds) for contender in contenders if contender.method == "erm")
    return [
        {
            "bench": "step",
            "method": contender.method,
            "features": contender.features,
            "median_s": median(contender.seconds),
            "ratio_to_erm": median(contender.seconds) / erm,
            "data_wait": sum(contender.waits) / sum(contender.seconds),
            "raw_s": contender.seconds,
            "unavailable": None,
        }
        for contender in contenders
    ]


def _beside_erm(names: Sequence[str]) -> list[dict[str, str]]:
    return [{"name": name} for name in dict.fromkeys(("erm", *names))]


def _require_same_samples(contenders: list[Contender]) -> None:
    """Compares the first batch of every method's stored and online features: image, label and mask."""
    for one, other in itertools.combinations(contenders, 2):
        if one.method != other.method:
            continue
        a, b = one.batches.at(0), other.batches.at(0)
        pairs = ((a.image_bcxyz, b.image_bcxyz), (a.label_bcxyz, b.label_bcxyz), (a.kept_bc, b.kept_bc))
        if not all(torch.equal(left, right) for left, right in pairs):
            raise StoreError(f"{one.method}: {one.features} and {other.features} features come with other crops")
