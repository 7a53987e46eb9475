"""Times what a run consists of on a few of its own cases, in a folder that is gone afterwards."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from dropgen.config import Component, Trial
from dropgen.errors import StoreError
from dropgen.features.index import StudyIndex
from dropgen.features.store import FeatureStore
from dropgen.features.studies.study import Study
from dropgen.features.studies.validation import validation_cases
from dropgen.features.worker import Recipe, Work, Worker
from dropgen.manifest import git_commit
from dropgen.platform.methods import build as build_method
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import Workbench
from dropgen.platform.training.contender import Contender
from dropgen.platform.training.trial import choose_device, segmenter_spec
from dropgen.tuning.resources import shape

TRAIN_CASES = 2  # a step takes crops of one size, whatever the cases
BLOCKS = 2


@dataclass(frozen=True)
class Timing:
    """Seconds, measured one after the other.

    Attributes:
        case: Of one case into the store.
        steps: Of one training step, by method.
        predictions: Of one validation case, by method.
        concurrent: Trials that this machine runs at once.
    """

    case: float
    steps: Mapping[str, float]
    predictions: Mapping[str, float]
    concurrent: int


def time_work(bench: Workbench, trials: Mapping[str, Trial], on_timed: Callable[[str], None]) -> Timing:
    """Prepares a few cases, then takes two blocks of training steps and a prediction of every method.

    Args:
        bench: Its store is not touched; the cases are prepared anew.
        trials: The one of each method that stands for the others.
        on_timed: Told of every method that was timed.

    Raises:
        ResourceError: Not even one trial fits on this machine.
        StoreError: A case cannot be prepared.
    """
    training = bench.experiment.training
    machine = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    room = shape(training, bench.experiment.search.concurrent, [machine])
    threads, device = torch.get_num_threads(), choose_device(training.device)
    with tempfile.TemporaryDirectory(prefix="dropgen-") as folder:
        small, case_seconds = _small(bench, Path(folder))
        torch.set_num_threads(training.threads)
        steps, predictions = {}, {}
        for name, ruled in trials.items():
            # A step takes as long under every intensity rule, and the few cases are prepared under the study's.
            method = Component.of(ruled.method.name, **ruled.method.hyperparameters)
            trial = Trial(method=method, seed=ruled.seed)
            contender = Contender.of(small, trial, device)
            for _ in range(BLOCKS):
                contender.run()
            steps[name] = min(contender.seconds)  # another process can only slow a block down
            predictions[name] = _predict(small, trial, contender, device)
            on_timed(name)
    torch.set_num_threads(threads)
    return Timing(case_seconds, steps, predictions, room.concurrent)


def _small(bench: Workbench, folder: Path) -> tuple[Workbench, float]:
    """The same workbench over a few cases in a store of its own, and the mean seconds that a case took."""
    rule, features = bench.experiment.selection.rule, bench.experiment.features
    cases = (*bench.study.split("train")[:TRAIN_CASES], validation_cases(bench.study, rule)[0])
    study: Study = replace(bench.study, cases=cases)
    store = FeatureStore(folder / "store")
    stored = bench.extractor if bench.index.extractor is not None else None
    index = StudyIndex.of(study, stored, features.dtype)
    worker = Worker(Recipe(store, study, features.extractor if stored else None, features.dtype, git_commit()))
    began = time.perf_counter()
    for case in cases:
        keys = index.keys[case.id]
        if problem := worker.run(Work(case, keys, tuple(kind for kind, _ in keys.entries()))).problem:
            raise StoreError(problem)
    seconds = (time.perf_counter() - began) / len(cases)
    return replace(bench, root=folder, study=study, store=store, index=index), seconds


def _predict(bench: Workbench, trial: Trial, contender: Contender, device: str) -> float:
    """Seconds of one validation case, the median of three."""
    method, bench = build_method(trial.method), bench.on(device)
    case = validation_cases(bench.study, bench.experiment.selection.rule)[0]
    network = contender.learner.network.eval()
    extractor = bench.extractor if method.needs_features else None
    segmenter = Segmenter(segmenter_spec(bench, trial), network, method, extractor, device)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        prepared, stored, _ = bench.stored(case, method)
        segmenter.predict_prepared(prepared, stored)
        seconds.append(time.perf_counter() - began)
    return median(seconds)
