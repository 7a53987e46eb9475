"""Test a trained trial: masks on native grids, Dice and other measures per case and class, means over subjects.

The trial's bundle is loaded and given files, exactly as the server does; prepared volumes and stored
features play no part here.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import csv
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from dropgen import console
from dropgen.config import Component, Trial, load_experiment, to_json
from dropgen.features.studies.study import Case, Study
from dropgen.features.studies.validation import validation_cases
from dropgen.features.studies.volume import read_mask, read_volume, write_mask
from dropgen.manifest import Manifest, code_version, digest, file_digest, read_json, write_json
from dropgen.platform.evaluation.adapted import adapt_trial, choose_adapted, stable_trial, tries
from dropgen.platform.evaluation.kept import Checkpoint, fingerprint_file, load_kept
from dropgen.platform.evaluation.measures import MEASURES, Measured, how, measure, summarise_measures
from dropgen.platform.evaluation.metrics import class_dice, domain_dice, pooled_mean
from dropgen.platform.evaluation.touches import Touch
from dropgen.platform.train import Workbench, choose_trials
from dropgen.platform.training.trial import choose_device

COLUMNS = ("case", "subject", "domain", "split", "class", *MEASURES)


def held_out_cases(study: Study, rule: str) -> tuple[Case, ...]:
    """The cases that neither trained nor selected anything.

    These are the test cases and, where none of them comes from a training domain, the training
    domains' validation cases, provided the selection rule does not look at them: without either
    there would be no in-domain number.
    """
    test = study.split("test")
    if study.train_domains & {case.domain for case in test}:
        return test
    selecting = {case.id for case in validation_cases(study, rule)}
    unused = [case for case in study.split("val") if case.domain in study.train_domains and case.id not in selecting]
    return (*test, *unused)


def evaluate_trial(
    bench: Workbench,
    trial: Trial,
    on_prediction: Callable[[int, int], None] = lambda done, total: None,
    adapt: Component | None = None,
    verb: str = "evaluate",
    checkpoint: Checkpoint = "chosen",
) -> dict[str, Any]:
    """Predicts and scores every held-out case of a trained trial.

    Writes `evaluation/masks/<case>.nii.gz`, `evaluation/cases.csv` and, last, `evaluation/summary.json`;
    returns at once when that is there for the same bundle, cases and code; otherwise it is a touch of the test cases
    and in their log (`touches.py`). With a test-time method the folder is `evaluation-<label of the method>`, beside
    the plain one; with another checkpoint than the chosen it is `evaluation@<checkpoint>`.

    Args:
        bench: The opened experiment.
        trial: One of its trials.
        on_prediction: Told how many of how many predictions are done, those that tune a test-time method included.
        adapt: A test-time method; what of its search space it leaves open is tuned on the validation cases first.
        verb: Which verb wants it, for the log.
        checkpoint: Which of those that the trial keeps; a test-time method adapts the chosen one.

    Returns:
        `domains` (mean, sd, se and n over subjects), `classes` (the same per class), `source_dice`
        (training domains pooled), `target_dice` (mean per unseen domain), `measures` (how they were taken, then as
        `measures.summarise_measures`), `cases`, `scored`, and with a test-time method `adaptation` (the values chosen
        and their validation Dice). Dice in 0..1.

    Raises:
        CheckpointError: The trial, or the stable one that the test-time method needs, is not trained or damaged.
        ConfigError: The experiment has no trial that the test-time method needs.
        ResourceError: The touch cannot be logged.
    """
    output = evaluation_folder(bench, trial, adapt, checkpoint)
    if (finished := known_evaluation(bench, trial, adapt, checkpoint)) is not None:
        return finished
    inputs = _inputs(bench, trial, adapt, checkpoint)
    stable = stable_trial(bench.experiment, trial, adapt)
    ruled = bench.under(trial)
    cases = held_out_cases(bench.study, bench.experiment.selection.rule)
    total = len(cases) + (0 if adapt is None else tries(bench, adapt))
    done = itertools.count(1)

    def predicted() -> None:
        on_prediction(next(done), total)

    segmenter = load_kept(bench, trial, checkpoint, choose_device(bench.experiment.training.device))
    adaptation: dict[str, Any] = {}
    if adapt is not None:
        segmenter, adaptation = adapt_trial(ruled, segmenter, stable, adapt, predicted)
    touch = Touch.of(verb, bench.key(trial), trial, adapt, checkpoint, cases, ruled.index)
    touch.log(bench.root / bench.experiment.name)
    scores: list[tuple[Case, Measured]] = []
    tolerance = bench.experiment.evaluation.nsd_tolerance
    for case in cases:
        image, *others = map(read_volume, case.images)
        mask = segmenter.predict(image, *others, modality=case.modality)
        write_mask(output / "masks" / f"{case.id}.nii.gz", mask, image.affine)
        if case.label is not None:
            truth = read_mask(case.label).array
            scores.append((case, measure(mask, truth, image.affine, case, bench.study, tolerance)))
        predicted()
    facts = adaptation | {
        "label": trial.label if adapt is None else f"{trial.label} + {adapt.label}",
        "cases": len(cases), "scored": len(scores), "inputs": inputs,
    }  # fmt: skip
    return write_scores(output, scores, bench, facts)


def known_evaluation(
    bench: Workbench, trial: Trial, adapt: Component | None, checkpoint: Checkpoint = "chosen"
) -> dict[str, Any] | None:
    """What `evaluate_trial` would return at once, because it is on disk for the same weights, cases and code; or None.

    Raises:
        CheckpointError, ConfigError: As `evaluate_trial`.
    """
    summary = read_json(evaluation_folder(bench, trial, adapt, checkpoint) / "summary.json")
    return dict(summary) if summary and summary.get("inputs") == _inputs(bench, trial, adapt, checkpoint) else None


def _inputs(bench: Workbench, trial: Trial, adapt: Component | None, checkpoint: Checkpoint) -> str:
    """Digest of everything that an evaluation depends on."""
    stable = stable_trial(bench.experiment, trial, adapt)
    weights = [fingerprint_file(bench, trial, checkpoint)]
    if stable is not None:
        weights.append(fingerprint_file(bench, stable, "chosen"))
    rule = bench.experiment.selection.rule
    cases = held_out_cases(bench.study, rule)
    index = bench.under(trial).index
    seen = cases if adapt is None else (*cases, *validation_cases(bench.study, rule))
    return digest([
        [file_digest(file) for file in weights],
        {case.id: dataclasses.asdict(index.keys[case.id]) for case in seen},
        how(bench.study, bench.experiment.evaluation),
        code_version("features", "platform"),
    ])  # fmt: skip


def write_scores(
    output: Path, scores: Sequence[tuple[Case, Measured]], bench: Workbench, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes `cases.csv` and, last, `summary.json` of scored cases; returns the summary, which holds `facts` too."""
    study = bench.study
    _write_cases(output / "cases.csv", scores, study.classes)
    measures = how(study, bench.experiment.evaluation) | summarise_measures(scores, study)
    summary = {**summarise([(case, found["dice"]) for case, found in scores], study), "measures": measures, **facts}
    write_json(output / "summary.json", summary)
    return summary


def evaluation_folder(
    bench: Workbench, trial: Trial, adapt: Component | None, checkpoint: Checkpoint = "chosen"
) -> Path:
    """Where a trial's evaluation lies, plain, with a test-time method or of another checkpoint than the chosen."""
    plain = "evaluation" if checkpoint == "chosen" else f"evaluation@{checkpoint}"
    return bench.folder(trial) / (plain if adapt is None else f"{plain}-{adapt.label}")


def summarise(scores: Sequence[tuple[Case, np.ndarray]], study: Study) -> dict[str, Any]:
    """Means over subjects of per-class Dice, training domains and unseen ones apart."""
    domains = domain_dice(scores)
    source = {name: spread for name, spread in domains.items() if name in study.train_domains}
    classes = class_dice(scores, study.classes)
    return {
        "domains": {name: dataclasses.asdict(spread) for name, spread in domains.items()},
        "classes": {
            domain: {name: dataclasses.asdict(spread) for name, spread in spreads.items()}
            for domain, spreads in classes.items()
        },
        "source_dice": pooled_mean(source),
        "target_dice": {name: spread.mean for name, spread in domains.items() if name not in study.train_domains},
    }


def result_table(summaries: Mapping[str, Mapping[str, Any]], train_domains: frozenset[str]) -> Table:
    """Dice in percent points, one row per trial and one column per domain, training domains first."""
    found = {domain for summary in summaries.values() for domain in summary["domains"]}
    order = sorted(found, key=lambda domain: (domain not in train_domains, domain))
    table = Table("trial", title="Dice x 100, mean (SE) over subjects")
    for domain in order:
        table.add_column(f"{domain}\n{'source' if domain in train_domains else 'unseen'}", justify="right")
    for label, summary in summaries.items():
        table.add_row(label, *(_cell(summary["domains"].get(domain)) for domain in order))
    return table


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen evaluate`."""
    from dropgen.platform.external import trained_here  # it stands on this module

    experiment = trained_here(load_experiment(arguments.experiment, arguments.root, arguments.overrides))
    trials = choose_trials(experiment, arguments.method, arguments.seed)
    adapt = Component.parse(arguments.adapt) if arguments.adapt else None
    if adapt is not None:
        trials = choose_adapted(experiment, trials, adapt)
    bench = Workbench.open(experiment, arguments.root)
    record = Manifest(arguments.root / experiment.name / "evaluate.manifest.json", "evaluate", to_json(experiment))
    summaries: dict[str, dict[str, Any]] = {}
    with record.running(), console.progress("predictions") as bars:
        for trial in trials:
            bar = bars.add_task(trial.label, total=None, note="")

            def show(done: int, total: int, bar: TaskID = bar) -> None:
                bars.update(bar, completed=done, total=total)

            summary = evaluate_trial(bench, trial, show, adapt)
            summaries[summary["label"]] = {**summary, "folder": str(evaluation_folder(bench, trial, adapt))}
            if bars.tasks[bar].total is None:  # it was there already
                show(summary["cases"], summary["cases"])
    terminal = Console()
    with terminal.capture() as text:
        terminal.print(result_table(summaries, bench.study.train_domains))
    console.say(text.get().rstrip())
    for label, summary in summaries.items():
        if "adaptation" in summary:
            console.say(f"{label}: chose {summary['adaptation']['label']}")
    return {"experiment": experiment.name, "evaluations": list(summaries.values())}


def _cell(spread: Mapping[str, float | None] | None) -> str:
    if spread is None or spread["mean"] is None:
        return "-"
    error = "" if spread["se"] is None else f" ({100 * spread['se']:.1f})"
    return f"{100 * spread['mean']:.1f}{error}"


def _write_cases(path: Path, scores: Sequence[tuple[Case, Measured]], classes: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for case, found in scores:
            for place, name in enumerate(classes[1:]):
                values = [float(found[measure][place]) for measure in MEASURES]
                cells = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
                rows.writerow((case.id, case.subject, case.domain, case.split, name, *cells))


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
