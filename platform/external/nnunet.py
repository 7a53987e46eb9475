"""Isensee et al., nnU-Net: a self-configuring method, Nature Methods 2021; run through its own command line.

One fold, the study's own split, the configuration `3d_fullres`. The validation cases of the selection rule choose the
checkpoint, as for every other method; nnU-Net's own criterion on them is a moving average of the Dice of random
patches. That checkpoint predicts the test images, without mirroring, ensemble or postprocessing, and
`platform/evaluation/metrics.py` scores them on native grids.

Plans must come from training cases only, and nnU-Net takes the fingerprint of all that `imagesTr` holds. So
fingerprint and plans are made where `nnUNet_raw` holds the training cases alone, preprocessing follows where it holds
the validation cases too, and both share one `nnUNet_preprocessed`: no statistic of a validation case can enter a plan.

nnU-Net takes no seed: trials of several seeds are repetitions that differ by chance. On a CPU it trains with as many
threads as there are cores; an OpenMP limit below that leaves its convolutions waiting for ever.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dropgen.config import Component, Trial, to_json
from dropgen.errors import ConfigError, ExternalError, closest
from dropgen.features.studies.geometry import grid_difference
from dropgen.features.studies.labelling import Labelling
from dropgen.features.studies.study import Case
from dropgen.features.studies.validation import validation_cases
from dropgen.features.studies.volume import Volume, read_grid, read_mask, write_mask
from dropgen.manifest import code_version, digest, git_commit, read_json, versions, write_json
from dropgen.platform.evaluate import held_out_cases, write_scores
from dropgen.platform.evaluation.measures import how, measure
from dropgen.platform.evaluation.metrics import labelled_dice, mean_dice
from dropgen.platform.evaluation.touches import Touch
from dropgen.platform.external.commands import (
    ITERATIONS,
    NnUNet,
    Site,
    prediction_step,
    preparation_steps,
    program,
    training_step,
)
from dropgen.platform.external.epochs import read_epochs
from dropgen.platform.external.raw import DATASET, ENDING, channel_names, place_images, write_dataset, write_split
from dropgen.platform.external.step import Step, run_step
from dropgen.platform.training.bench import Workbench
from dropgen.platform.training.loop import History
from dropgen.platform.training.trial import choose_device

# Told what is being done and how many training iterations are done.
Report = Callable[[str, int], None]


def available() -> str | None:
    """Why nnU-Net cannot run here, or None where it can."""
    if program("nnUNetv2_train") is None:
        return "the extra dropgen[nnunet] is not installed: pip install 'dropgen[nnunet]'"
    return None


def build(component: Component) -> NnUNet:
    """The hyperparameters that an experiment names.

    Raises:
        ConfigError: An option is unknown or out of range.
    """
    known = [field.name for field in dataclasses.fields(NnUNet)]
    for name in component.options:
        if name not in known:
            raise ConfigError(f"unknown option '{name}' of method '{NnUNet.name}'{closest(name, known)}")
    return NnUNet(**component.options)


def key(bench: Workbench, trial: Trial) -> str:
    """Digest of everything that a trial's network depends on, chance aside."""
    return digest({"trial": to_json(trial), "data": _data_key(bench)})


def run(bench: Workbench, trial: Trial, report: Report = lambda doing, step: None) -> dict[str, Any]:
    """Trains, predicts and scores one trial, from where an earlier call stopped.

    Writes `<root>/<experiment>/external/<key>/` with `logs/`, nnU-Net's `results/`, `evaluation/` as
    `evaluate_trial` does and, last, `result.json`; the data lie beside it in `nnunet-<data key>/`.

    Args:
        bench: The opened experiment; the trial is none of its own.
        trial: Method `nnunet` and a seed.
        report: Told of progress.

    Returns:
        What `train_trial` returns, without a bundle, and `evaluation`, what `evaluate_trial` returns. `val_dice` is
        measured on native grids; the curve's validation Dice is nnU-Net's own, of random patches.

    Raises:
        ConfigError: nnU-Net is not installed, or an option is wrong.
        ExternalError: One of its commands fails; names the log.
    """
    method = build(trial.method)
    if reason := available():
        raise ConfigError(f"method {method.name} cannot run: {reason}")
    if (finished := known_result(bench, trial)) is not None:
        return finished
    site = _site(bench, trial)
    rule = bench.experiment.selection.rule
    val, test, inputs = validation_cases(bench.study, rule), held_out_cases(bench.study, rule), _inputs(bench)
    write_json(site.trial / "trial.json", {"trial": to_json(trial), "experiment": to_json(bench.experiment)})
    seconds = _prepare(site, bench, val, report) + _train(site, method, report)
    Touch.of("run", key(bench, trial), trial, None, "chosen", test, bench.index).log(bench.root / bench.experiment.name)
    masks = _predict(site, method, [*val, *test], inputs, report)
    report("score", method.steps)
    labelling = bench.study.labelling
    val_dice = mean_dice([(case, _dice(case, _mask(case, masks), labelling)) for case in val])
    evaluation = _evaluate(site.trial / "evaluation", bench, trial, test, masks, inputs)
    result = _result(site, bench, trial, method) | {
        "val_dice": val_dice, "seconds": round(seconds, 2), "evaluation": evaluation
    }  # fmt: skip
    write_json(site.trial / "result.json", result)
    return result


def steps(bench: Workbench, trial: Trial) -> tuple[Step, ...]:
    """What `run` calls, in order."""
    site, method = _site(bench, trial), build(trial.method)
    return (*preparation_steps(site), training_step(site, method), _prediction(site, method, _inputs(bench)))


def known_result(bench: Workbench, trial: Trial) -> dict[str, Any] | None:
    """The result of a trial that was trained and tested on the same data with the same code, or None."""
    finished = read_json(_home(bench) / key(bench, trial) / "result.json")
    return dict(finished) if finished and finished["evaluation"]["inputs"] == _inputs(bench) else None


def _home(bench: Workbench) -> Path:
    return bench.root / bench.experiment.name / "external"


def _site(bench: Workbench, trial: Trial) -> Site:
    training, home = bench.experiment.training, _home(bench)
    data = home / f"{NnUNet.name}-{_data_key(bench)}"
    return Site(data, home / key(bench, trial), choose_device(training.device), training.threads)


def _inputs(bench: Workbench) -> str:
    """Digest of everything that masks and scores depend on beside the network."""
    test = held_out_cases(bench.study, bench.experiment.selection.rule)
    return digest([_case_keys(bench, test), how(bench.study, bench.experiment.evaluation), code_version("platform")])


def _data_key(bench: Workbench) -> str:
    rule = bench.experiment.selection.rule
    cases = {"train": bench.study.split("train"), "val": validation_cases(bench.study, rule)}
    return digest({
        "cases": {split: _case_keys(bench, members) for split, members in cases.items()},
        "labels": bench.study.labelling.to_yaml(),
        "channels": channel_names(bench.study),
        "version": versions(["nnunetv2"]),
        "code": code_version("platform/external/raw.py", "platform/external/commands.py"),
    })  # fmt: skip


def _case_keys(bench: Workbench, cases: Sequence[Case]) -> dict[str, tuple[str, str | None]]:
    keys = {case.id: bench.index.keys[case.id] for case in cases}
    return {name: (case.volume, case.label) for name, case in keys.items()}


def _prepare(site: Site, bench: Workbench, val: Sequence[Case], report: Report) -> float:
    train = bench.study.split("train")
    write_dataset(site.planning / DATASET, bench.study, train)
    write_dataset(site.raw / DATASET, bench.study, [*train, *val])
    write_split(site.preprocessed / DATASET / "splits_final.json", train, val)
    seconds = 0.0
    for step in preparation_steps(site):
        report(step.name, 0)
        seconds += run_step(step, site.data / "logs")
    return seconds


def _train(site: Site, method: NnUNet, report: Report) -> float:
    def watch(log: Path) -> None:
        epochs = read_epochs(log.read_text(errors="replace"))
        note = f"train, pseudo Dice {epochs[-1].dice:.3f}" if epochs else "train"
        report(note, ITERATIONS * len(epochs))

    return run_step(training_step(site, method), site.trial / "logs", watch)


def _predict(site: Site, method: NnUNet, cases: Sequence[Case], inputs: str, report: Report) -> Path:
    """Predicts all cases in one go; returns the folder of masks."""
    report("predict", method.steps)
    folder = _predictions(site, inputs)
    place_images(folder / "images", cases)
    run_step(_prediction(site, method, inputs), folder)
    masks = folder / "masks"
    for case in cases:
        if not (masks / f"{case.id}{ENDING}").exists():
            raise ExternalError(f"nnU-Net wrote no mask of case {case.id}; its output is in {folder / 'predict.log'}")
    return masks


def _predictions(site: Site, inputs: str) -> Path:
    return site.trial / "predictions" / inputs


def _prediction(site: Site, method: NnUNet, inputs: str) -> Step:
    folder = _predictions(site, inputs)
    return prediction_step(site, method, folder / "images", folder / "masks", "predict")


def _evaluate(
    output: Path, bench: Workbench, trial: Trial, cases: Sequence[Case], masks: Path, inputs: str
) -> dict[str, Any]:
    scores = []
    for case in cases:
        mask = _mask(case, masks)
        write_mask(output / "masks" / f"{case.id}{ENDING}", mask.array, mask.affine)
        if case.label is not None:
            truth, tolerance = read_mask(case.label).array, bench.experiment.evaluation.nsd_tolerance
            scores.append((case, measure(mask.array, truth, mask.affine, case, bench.study, tolerance)))
    facts = {"label": trial.label, "cases": len(cases), "scored": len(scores), "inputs": inputs}
    return write_scores(output, scores, bench, facts)


def _mask(case: Case, masks: Path) -> Volume:
    """nnU-Net's mask of a case, known to lie on the image's own grid.

    Raises:
        ExternalError: It lies on another grid.
    """
    path, grid = masks / f"{case.id}{ENDING}", read_grid(case.image)
    mask = read_mask(path)
    if difference := grid_difference(mask, grid.array.shape, grid.affine):
        raise ExternalError(f"{path} is not on the grid of {case.image}: {difference}; report this as a bug")
    return Volume(mask.array, grid.affine)


def _dice(case: Case, mask: Volume, labelling: Labelling) -> np.ndarray:
    assert case.label is not None
    return labelled_dice(mask.array, read_mask(case.label).array, labelling)


def _result(site: Site, bench: Workbench, trial: Trial, method: NnUNet) -> dict[str, Any]:
    epochs = read_epochs((site.trial / "logs" / "train.log").read_text(errors="replace"))
    ends = [ITERATIONS * (epoch.number + 1) for epoch in epochs]
    history = History(
        losses=[(end, epoch.loss) for end, epoch in zip(ends, epochs, strict=True)],
        validation=[(end, epoch.dice) for end, epoch in zip(ends, epochs, strict=True) if math.isfinite(epoch.dice)],
    )
    return {
        "label": trial.label,
        "method": method.name,
        "options": trial.method.options,
        "p": None,
        "seed": trial.seed,
        "after_training": None,
        "source_rule": None,
        "resumed": [],
        "key": key(bench, trial),
        "steps": method.steps,
        "best_step": max((end for end, epoch in zip(ends, epochs, strict=True) if epoch.best), default=0),
        "converged": history.converged(method.steps),
        "train_seconds": round(sum(epoch.seconds for epoch in epochs), 2),
        "features": None,
        "data_wait": None,
        "curve": {
            "loss": [[*entry] for entry in history.losses],
            "validation": [[*entry] for entry in history.validation],
        },
        "bundle": None,
        "folder": str(site.trial),
        "commit": git_commit(),
    }
