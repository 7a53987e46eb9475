"""Chooses where features come from, for an experiment whose `features.source` is auto."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.filesize import decimal as size_text

from dropgen.config import Experiment, Trial
from dropgen.console import say
from dropgen.features.demand import features_bytes
from dropgen.features.index import StudyIndex
from dropgen.platform.methods import build as build_method
from dropgen.platform.training.bench import Workbench, choice_record, leaves_source_open, trials_of
from dropgen.platform.training.choice import Choice, Source
from dropgen.platform.training.contender import Contender
from dropgen.platform.training.trial import choose_device

BLOCKS = 2  # of steps with either source, in turns


def settle(experiment: Experiment, root: Path) -> None:
    """Makes the choice and puts it on record, unless one is there or there is nothing to choose.

    Both sources are timed with the first trial that leaves the source open, on the study's own cases. A store that
    lacks features of a case cannot be timed: then they are made online.

    Raises:
        StoreError: The store lacks volumes or labels of a case.
    """
    if experiment.features.source != "auto":
        return
    trials = (trial for trial in trials_of(experiment) if leaves_source_open(build_method(trial.method)))
    trial = next(trials, None)
    if trial is None:
        return
    online = _with_source(experiment, root, trial, "online")
    assert online.extractor is not None
    record = choice_record(experiment, root, online.study, online.extractor, online.store)
    if Choice.read(record) is not None:
        return
    choice = _choose(online, trial)
    choice.write(record)
    say(choice.why)


def _choose(online: Workbench, trial: Trial) -> Choice:
    began = time.perf_counter()
    experiment, store = online.experiment, online.store
    features = experiment.features
    assert online.extractor is not None
    index = StudyIndex.of(online.study, online.extractor, features.dtype, store)
    disk = features_bytes(index, online.extractor.channels, store)
    if missing := index.missing(store):
        why = (
            f"features online: the store lacks those of {len(missing)} of {len(index.keys)} cases; to train on stored "
            f"ones run `dropgen precompute EXPERIMENT` ({size_text(disk)} on disk for all cases) and set "
            "features.source to stored"
        )
        return Choice("online", why, None, None, disk, round(time.perf_counter() - began, 2))
    stored = _with_source(experiment, online.root, trial, "stored")
    stored_s, online_s = _time(stored, online, trial)
    faster: Source = "stored" if stored_s <= online_s else "online"
    times = {"stored": f"{stored_s:.3g} s a step stored", "online": f"{online_s:.3g} s a step online"}
    slower = "online" if faster == "stored" else "stored"
    why = f"features {faster}: {times[faster]} against {times[slower]}; stored ones take {size_text(disk)} on disk"
    return Choice(faster, why, stored_s, online_s, disk, round(time.perf_counter() - began, 2))


def _time(stored: Workbench, online: Workbench, trial: Trial) -> tuple[float, float]:
    """Seconds of a step with either source, the better of the blocks: another process can only slow one down."""
    training = stored.experiment.training
    torch.set_num_threads(training.threads)
    device = choose_device(training.device)
    contenders = [Contender.of(bench, trial, device) for bench in (stored, online)]
    for _ in range(BLOCKS):
        for contender in contenders:
            contender.run()
    first, second = (min(contender.seconds) for contender in contenders)
    return first, second


def _with_source(experiment: Experiment, root: Path, trial: Trial, source: Source) -> Workbench:
    features = experiment.features.model_copy(update={"source": source})
    return Workbench.open(experiment.model_copy(update={"features": features, "methods": (trial.method,)}), root)
