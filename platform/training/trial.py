"""One trial on one rank: builds the parts, trains, keeps the best network as a bundle, records the result."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dropgen.config import LEAVE_ONE_OUT, Selection, Trial, to_json
from dropgen.errors import ConfigError, DivergenceError
from dropgen.features.studies.study import Case
from dropgen.features.studies.validation import folds, validation_cases
from dropgen.manifest import git_commit, read_json, write_json
from dropgen.platform.bundle import SegmenterSpec
from dropgen.platform.evaluation.metrics import labelled_dice, mean_dice
from dropgen.platform.evaluation.quality import record_classes
from dropgen.platform.methods import Method
from dropgen.platform.methods import build as build_method
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.networks import build_network
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.training.batches import Batches
from dropgen.platform.training.bench import BESIDE, BUNDLE, Workbench
from dropgen.platform.training.dial import Dialled, dial
from dropgen.platform.training.folds import FOLDS, Curve, mean_curve, part_of
from dropgen.platform.training.loop import History, Judge, Progress, Task, fit
from dropgen.platform.training.plan import SamplePlan
from dropgen.platform.training.probe import probe_of
from dropgen.platform.training.workers import Workers

DIVERGED = "diverged.json"
MOST_LABELS = 100  # looked at for the record of class volumes; a label of 9 million voxels takes about 0.1 s


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a trial that has ended, or None."""
    result: dict[str, Any] | None = read_json(folder / "result.json")
    return result


def run_trial(
    bench: Workbench, trial: Trial, workers: Workers, on_progress: Callable[[Progress], None]
) -> dict[str, Any]:
    """Trains one trial from where it stands; every rank calls this.

    Writes `trial.json`, `last.ckpt`, `bundle/` and, last, `result.json` into the trial's folder, or `diverged.json`.

    Raises:
        DivergenceError: A loss is not finite.
        StudyError: A label holds a value that is no class, before the first step.
        StoreError: An entry is damaged; names the case.
    """
    folder = bench.folder(trial)
    if (done := finished(folder)) is not None:
        return done
    began = time.perf_counter()
    experiment, training = bench.experiment, bench.experiment.training
    method = build_method(trial.method)
    if workers.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / "trial.json",
            {
                "trial": to_json(trial),
                "experiment": to_json(experiment),
                "features": bench.source(method),
                "choice": bench.choice and asdict(bench.choice),
            },
        )
        (folder / DIVERGED).unlink(missing_ok=True)
    torch.set_num_threads(training.threads)
    torch.manual_seed(trial.seed)
    device = _own_device(training.device)
    bench = bench.under(trial).on(device)
    rule, beside = validation_cases(bench.study, experiment.selection.rule), bench.beside
    left_out: dict[str, Curve] = {}
    try:
        if experiment.selection.rule == LEAVE_ONE_OUT:
            left_out = _leave_out(bench, trial, folder, workers, device, on_progress)
            torch.manual_seed(trial.seed)
            on_progress = part_of(on_progress, len(left_out), bench.trainings)
        segmenter, batches = _parts(bench, trial, method, workers, device)
        # What left-out domains say of a step keeps the network of that step: no case is left to judge it by itself.
        told = dict(mean_curve(list(left_out.values())))
        task = Task(
            network=segmenter.network,
            method=method,
            batches=batches,
            training=training,
            rule=Judge(
                lambda step: told[step] if told else _validate(bench, segmenter, rule, workers),
                lambda: segmenter.save(folder / BUNDLE),
            ),
            beside=Judge(
                lambda step: _validate(bench, segmenter, beside, workers), lambda: segmenter.save(folder / BESIDE)
            )
            if beside
            else None,
            folder=folder,
            device=device,
            labelling=bench.study.labelling,
            probe=probe_of(bench, method, device),
        )
        history = fit(task, workers, on_progress)
    except DivergenceError as error:
        if workers.rank == 0:
            write_json(folder / DIVERGED, {"label": trial.label, "step": error.step, "why": str(error)})
        raise
    dialled = _dialled(bench, trial, folder / BUNDLE, rule, workers, device)
    source_rule = None
    if history.best_beside is not None:
        step, dice = history.best_beside
        other = _dialled(bench, trial, folder / BESIDE, beside, workers, device)
        source_rule = {"step": step, "val_dice": dice if other is None else other.val_dice}
    result = _result(bench, trial, method, history, dialled, time.perf_counter() - began)
    result["source_rule"] = source_rule
    result["curve"]["left_out"] = {domain: [[*entry] for entry in curve] for domain, curve in left_out.items()}
    if workers.rank == 0:
        write_json(folder / "result.json", result)
    return result


def _parts(bench: Workbench, trial: Trial, method: Method, workers: Workers, device: str) -> tuple[Segmenter, Batches]:
    """A new network as a segmenter, which trains in place, and the batches for it."""
    extractor = bench.extractor if method.needs_features else None
    channels = extractor.channels if extractor else 0
    study = bench.study
    network = build_network(bench.experiment.network, method, channels, study.labelling.outputs, study.image_channels)
    method.initialise(network)
    segmenter = Segmenter(segmenter_spec(bench, trial), network, method, extractor, device)
    return segmenter, make_batches(bench, trial, method, channels, workers, device)


def _leave_out(
    bench: Workbench,
    trial: Trial,
    folder: Path,
    workers: Workers,
    device: str,
    on_progress: Callable[[Progress], None],
) -> dict[str, Curve]:
    """Trains once without every training domain; returns how each one judged its training, step by step.

    A fold's network is thrown away; its curve stays in `folds/<number>.json`, so that no fold is trained twice.
    """
    found: dict[str, Curve] = {}
    method, studies = build_method(trial.method), folds(bench.study)
    selection = Selection(rule="target_validation")  # of a fold, the left-out domain's cases alone
    for number, (domain, study) in enumerate(studies.items()):
        record = folder / FOLDS / f"{number}.json"
        if (known := read_json(record)) is not None:
            found[domain] = [(int(step), float(dice)) for step, dice in known["curve"]]
            continue
        experiment = bench.experiment.model_copy(update={"selection": selection, "analyses": ()})
        fold, judged = replace(bench, experiment=experiment, study=study), study.split("val")
        torch.manual_seed(trial.seed)
        segmenter, batches = _parts(fold, trial, method, workers, device)
        (folder / FOLDS / str(number)).mkdir(parents=True, exist_ok=True)
        task = Task(
            network=segmenter.network,
            method=method,
            batches=batches,
            training=experiment.training,
            rule=_judge_of(fold, segmenter, judged, workers),
            beside=None,
            folder=folder / FOLDS / str(number),
            device=device,
            labelling=bench.study.labelling,
        )
        history = fit(task, workers, part_of(on_progress, number, len(studies) + 1))
        found[domain] = history.validation
        if workers.rank == 0:
            write_json(record, {"domain": domain, "curve": [[*entry] for entry in history.validation]})
            shutil.rmtree(task.folder)
    return found


def _judge_of(bench: Workbench, segmenter: Segmenter, cases: Sequence[Case], workers: Workers) -> Judge:
    """Scores and keeps nothing."""
    return Judge(lambda step: _validate(bench, segmenter, cases, workers), lambda: None)


def choose_device(wanted: str) -> str:
    """Turns "auto" into CUDA where there is one, else the CPU.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device = 'cuda', but this machine has no usable CUDA device; set it to 'auto'")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def _own_device(wanted: str) -> str:
    """`choose_device` with its index: in the thread that makes batches "cuda" alone would be another GPU than here."""
    device = choose_device(wanted)
    return f"{device}:{torch.cuda.current_device()}" if device == "cuda" else device


def segmenter_spec(bench: Workbench, trial: Trial) -> SegmenterSpec:
    """Everything a bundle must say to predict without the experiment."""
    experiment, study = bench.experiment, bench.study
    method = build_method(trial.method)
    extractor = bench.extractor if method.needs_features else None
    return SegmenterSpec(
        name=f"{experiment.name} {trial.label}",
        study=study.name,
        classes=study.classes,
        spacing=study.spacing,
        crop=study.crop,
        intensity=study.intensity,
        channels=study.channels,
        method=trial.method,
        network=experiment.network,
        extractor=experiment.features.extractor if extractor else None,
        extractor_fingerprint=extractor.fingerprint if extractor else None,
        feature_scope="window" if bench.source(method) == "online" else "volume",
        overlap=experiment.evaluation.overlap,
        training=record_classes(_training_labels(bench), math.prod(study.spacing) / 1000, study.classes, study.regions),
        codes=dict(study.codes),
        regions=study.regions,
        regions_class_order=study.regions_class_order,
        ignore=study.ignore,
    )


def _training_labels(bench: Workbench) -> Iterator[np.ndarray]:
    """Labels of the training cases on their prepared grids, of so many that reading them takes a moment."""
    keys = [bench.index.keys[case.id].label for case in bench.study.split("train")]
    for key in keys[:: -(-len(keys) // MOST_LABELS)]:
        if key is not None:
            yield bench.store.label(key)


def make_batches(
    bench: Workbench, trial: Trial, method: Method, channels: int, workers: Workers, device: str
) -> Batches:
    """This rank's share of a trial's batches; `channels` is the number of feature channels.

    Raises:
        StudyError: As `Workbench.require_known_labels`.
    """
    bench.require_known_labels()
    training = bench.experiment.training
    cases = bench.study.split("train")
    plan = SamplePlan(
        seed=trial.seed,
        shapes={case.id: bench.store.volume(bench.index.keys[case.id].volume).shape for case in cases},
        crop=bench.study.crop,
        draw=lambda generator: method.draw(generator, channels, bench.study.image_channels),
        orientation=bench.study.orientation_augmentation,
        affine=training.augmentation.affine,
        probability=training.augmentation.probability,
    )
    return Batches(
        plan=plan,
        slots=tuple(range(training.batch))[workers.rank :: workers.size],
        method=method,
        classes=len(bench.study.classes),
        store=bench.store,
        keys={case.id: bench.index.keys[case.id] for case in cases},
        extractor=bench.extractor if method.needs_features else None,
        online_share=bench.experiment.features.online_share if bench.source(method) == "stored" else 1,
        augmentation=training.augmentation,
        device=device,
    )


def _dialled(
    bench: Workbench, trial: Trial, bundle: Path, cases: Sequence[Case], workers: Workers, device: str
) -> Dialled | None:
    """What the method leaves open until after training, chosen on these cases and put into the bundle."""
    dialled = dial(
        trial.method,
        lambda: Segmenter.load(bundle, device),
        lambda candidate: _validate(bench, candidate, cases, workers),
    )
    if dialled is not None and workers.rank == 0:
        dialled.segmenter.save(bundle)
    return dialled


def _validate(bench: Workbench, segmenter: Segmenter, cases: Sequence[Case], workers: Workers) -> float:
    """Mean Dice over validation cases, shared among the ranks."""
    mine = [(case, _score(bench, segmenter, case)) for case in cases[workers.rank :: workers.size]]
    return mean_dice([scored for share in workers.gather(mine) for scored in share])


def _score(bench: Workbench, segmenter: Segmenter, case: Case) -> np.ndarray:
    prepared, features, label = bench.stored(case, segmenter.method)
    return labelled_dice(segmenter.predict_prepared(prepared, features), label, bench.study.labelling)


def _result(
    bench: Workbench, trial: Trial, method: Method, history: History, dialled: Dialled | None, seconds: float
) -> dict[str, Any]:
    folder = bench.folder(trial)
    steps = bench.experiment.training.steps
    best_step, val_dice = history.best
    if dialled is not None:
        val_dice = dialled.val_dice
    return {
        "label": trial.label,
        "method": method.name,
        "options": trial.method.options,
        "p": method.p if isinstance(method, DropGen) else None,
        "seed": trial.seed,
        "after_training": dialled and {"options": dialled.options, "tried": [[*entry] for entry in dialled.tried]},
        "features": bench.source(method),
        "key": bench.key(trial),
        "steps": steps,
        "best_step": best_step,
        "val_dice": val_dice,
        "converged": history.converged(steps),
        "seconds": round(seconds, 2),
        "train_seconds": round(history.train_seconds, 2),
        "data_wait": round(history.data_wait, 4),
        "curve": {
            "loss": [[*entry] for entry in history.losses],
            "validation": [[*entry] for entry in history.validation],
            "condition1": [[*entry] for entry in history.probes],
        },
        "resumed": history.resumed,
        "bundle": str(folder / BUNDLE),
        "folder": str(folder),
        "commit": git_commit(),
    }
