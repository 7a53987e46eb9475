"""Finds what a test-time method needs in an experiment: the trials it suits, their stable partners, its values."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dropgen.config import Component, Experiment, Trial
from dropgen.errors import ConfigError
from dropgen.features.studies.validation import validation_cases
from dropgen.platform import methods
from dropgen.platform.adaptation import Target, build
from dropgen.platform.adaptation.adapted import AdaptedSegmenter, require_models
from dropgen.platform.adaptation.tuning import Labelled, combinations, tune
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.training.bench import Workbench, trials_of

STABLE = "rep_only"


def choose_adapted(experiment: Experiment, trials: Sequence[Trial], adapt: Component) -> tuple[Trial, ...]:
    """Those of the trials that a test-time method is meant for.

    Raises:
        ConfigError: There is none, or the method is unknown.
    """
    adaptation = build(adapt)
    suited = tuple(trial for trial in trials if adaptation.suits(methods.build(trial.method)))
    if not suited:
        labels = ", ".join(sorted({trial.method.label for trial in trials}))
        raise ConfigError(
            f"{adapt.name} is not meant for any of the chosen trials of experiment '{experiment.name}' ({labels}); "
            "add the method erm to the experiment and train it"
        )
    return suited


def stable_trial(experiment: Experiment, trial: Trial, adapt: Component | None) -> Trial | None:
    """The RepOnly trial of the same seed and intensity rule, where a test-time method needs one.

    Raises:
        ConfigError: The experiment has none.
    """
    if adapt is None or not build(adapt).needs_stable:
        return None
    wanted = STABLE, trial.seed, trial.intensity
    found = [one for one in trials_of(experiment) if (one.method.name, one.seed, one.intensity) == wanted]
    if not found:
        rule = "" if trial.intensity is None else f" intensity={trial.intensity}"
        raise ConfigError(
            f"{adapt.name} needs the trial '{STABLE}{rule} seed={trial.seed}' beside '{trial.label}', and experiment "
            f"'{experiment.name}' has no method {STABLE}{rule}; add it to methods and train it"
        )
    return found[0]


def tries(bench: Workbench, adapt: Component) -> int:
    """How many predictions it takes to tune a test-time method: every combination on every validation case."""
    return len(combinations(adapt)) * len(validation_cases(bench.study, bench.experiment.selection.rule))


def adapt_trial(
    bench: Workbench, model: Segmenter, stable_trial: Trial | None, adapt: Component, on_try: Callable[[], None]
) -> tuple[AdaptedSegmenter, dict[str, Any]]:
    """Tunes a test-time method on the validation cases of the selection rule.

    Args:
        bench: The opened experiment.
        model: What is adapted.
        stable_trial: The trial beside it, where the method needs one.
        adapt: The method; what of its search space it leaves open is tuned.
        on_try: Called after every prediction of the search, of which there are `tries`.

    Returns:
        The segmenter with the values chosen, and `{"adaptation": ...}` for the summary: name, options, label (which
        `--adapt` takes), validation Dice, the stable trial, and the seconds that tuning took.
    """
    stable = None if stable_trial is None else Segmenter.load(bench.bundle(stable_trial), model.device)
    require_models(build(adapt), model, stable)
    methods_of_both = [one.method for one in (model, stable) if one is not None]

    def cases() -> Iterator[Labelled]:
        for case in validation_cases(bench.study, bench.experiment.selection.rule):
            prepared, features, label = bench.stored(case, *methods_of_both)
            yield Labelled(case, Target(model, stable, prepared, features), label)

    began = time.perf_counter()
    adaptation, val_dice = tune(adapt, cases, on_try)
    options = {key: value for key, value in dataclasses.asdict(adaptation).items() if value is not None}
    record = {
        "name": adapt.name,
        "options": options,
        "label": Component.of(adapt.name, **options).label,
        "val_dice": None if math.isnan(val_dice) else val_dice,
        "stable": None if stable_trial is None else stable_trial.label,
        "seconds": round(time.perf_counter() - began, 2),
    }
    return AdaptedSegmenter(adaptation, model, stable), {"adaptation": record}
