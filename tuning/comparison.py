"""`dropgen search --methods`: methods side by side under one protocol; what cannot run is a line that says why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dropgen.config import Component, Experiment, load_experiment, with_seeds
from dropgen.errors import ConfigError, WeightsError
from dropgen.features.extractors import build as build_extractor
from dropgen.features.studies.study import Study, load_study
from dropgen.platform.adaptation import ADAPTATIONS
from dropgen.platform.catalogue import choose_names
from dropgen.platform.evaluation.adapted import STABLE
from dropgen.platform.external import EXTERNALS
from dropgen.platform.methods import ALIASES, METHODS
from dropgen.platform.training.bench import require_trainable
from dropgen.tuning.demo import demo_experiment
from dropgen.tuning.dry_run_page import tell
from dropgen.tuning.run import finish, run
from dropgen.tuning.search import refuse_measure
from dropgen.tuning.space import plan

DEMO = "methods-demo"


@dataclass(frozen=True)
class Roster:
    """Who takes part.

    Attributes:
        experiment: With the methods and test-time methods that can run.
        unavailable: `method, options, seed, reason` of those that cannot.
    """

    experiment: Experiment
    unavailable: tuple[dict[str, Any], ...]


def roster(experiment: Experiment, study: Study, names: Sequence[str], defaults: bool) -> Roster:
    """Puts methods and test-time methods into an experiment, as far as they can run there.

    What the experiment lists keeps the values that it gives there. A test-time method brings the models that it is
    published for.

    Args:
        experiment: Says how all are trained.
        study: Of the experiment.
        names: Of methods, test-time methods and external baselines.
        defaults: Whether methods run at their defaults instead of over their search space.

    Raises:
        ConfigError: The experiment fits no method at all, a value is out of range, or nothing that was named can run.
    """
    require_trainable(experiment.model_copy(update={"methods": (Component.of("erm"),)}), study)
    adaptations = [ADAPTATIONS[name] for name in names if name in ADAPTATIONS]
    wanted = [one for name in names if name not in ADAPTATIONS for one in _components(experiment, name, defaults)]
    for adaptation in adaptations:
        stable = (Component.of(STABLE),) if adaptation.needs_stable else ()
        wanted += [model for model in (*adaptation.adapts, *stable) if not any(_covers(one, model) for one in wanted)]
    wanted.sort(key=lambda one: [*METHODS, *EXTERNALS].index(one.name))
    obstacles = {name: _obstacle(experiment, study, wanted, name) for name in dict.fromkeys(one.name for one in wanted)}
    unavailable = [_line(name, reason) for name, reason in obstacles.items() if reason is not None]
    able = []
    for adaptation in adaptations:
        partners = [STABLE] if adaptation.needs_stable else []
        for model in adaptation.adapts:
            lacking = [name for name in (model.name, *partners) if obstacles[name] is not None]
            if lacking:
                unavailable.append(_line(f"{model.name}+{adaptation.name}", f"it needs {lacking[0]}"))
            elif adaptation.name not in able:
                able.append(adaptation.name)
    methods = tuple(one for one in wanted if obstacles[one.name] is None)
    if not methods:
        raise ConfigError(f"none of {', '.join(names)} can be trained here; {unavailable[0]['reason']}")
    search = experiment.search.model_copy(update={"test": "every" if defaults else "chosen"})
    given = {one.name: one for one in experiment.adaptations}
    tuned = tuple(given.get(name, Component.of(name)) for name in able)
    changes = {"methods": methods, "adaptations": tuned, "search": search}
    return Roster(experiment.model_copy(update=changes), tuple(unavailable))


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen search [EXPERIMENT] --methods ...`: trains, tunes and tests them all and prints one table."""
    names = choose_names(arguments.methods, (*METHODS, *ADAPTATIONS, *EXTERNALS))
    root = arguments.root
    if arguments.experiment is None:
        experiment = demo_experiment(root, arguments.overrides, DEMO, make=not arguments.dry_run)
    else:
        experiment = load_experiment(arguments.experiment, root, arguments.overrides)
    if arguments.seeds is not None:
        experiment = with_seeds(experiment, arguments.seeds)
    if arguments.max_minutes is not None:
        search = experiment.search.model_copy(update={"max_minutes": arguments.max_minutes})
        experiment = experiment.model_copy(update={"search": search})
    found = roster(experiment, load_study(experiment.study, root), names, arguments.defaults)
    if arguments.dry_run:
        return tell(found.experiment, root, measure=arguments.measure, unavailable=found.unavailable)
    refuse_measure(arguments)
    summary = run(
        found.experiment,
        root,
        address=arguments.address,
        unavailable=found.unavailable,
        notes=[_budget(found.experiment, arguments.defaults)],
        by_rank=True,
    )
    finish(summary)
    return summary


def _components(experiment: Experiment, name: str, defaults: bool) -> list[Component]:
    listed = [
        Component.of(name, **one.options) for one in experiment.methods if ALIASES.get(one.name, one.name) == name
    ]
    searched = {} if defaults or name not in METHODS else METHODS[name].search_space
    return listed or [Component.of(name, **{key: list(values) for key, values in searched.items()})]


def _covers(component: Component, model: Component) -> bool:
    """Whether the component is that model, or lists it among others."""
    if component.name != model.name:
        return False
    options = METHODS[model.name].options() | component.options
    return all(
        value in given if isinstance(given := options[key], list | tuple) else value == given
        for key, value in model.options.items()
    )


def _obstacle(experiment: Experiment, study: Study, wanted: Sequence[Component], name: str) -> str | None:
    """Why a method cannot be trained in this experiment on this machine, or None."""
    if name in EXTERNALS:
        return EXTERNALS[name].available()
    alone = experiment.model_copy(update={"methods": tuple(one for one in wanted if one.name == name)})
    methods = plan(alone).methods  # a value out of range is a mistake, not an obstacle
    try:
        require_trainable(alone.model_copy(update={"methods": methods}), study)
        if METHODS[name].needs_features:
            build_extractor(experiment.features.extractor)
    except (ConfigError, WeightsError) as error:
        return str(error)
    return None


def _line(method: str, reason: str) -> dict[str, Any]:
    return {"method": method, "options": {}, "seed": None, "reason": f"unavailable: {reason}"}


def _budget(experiment: Experiment, defaults: bool) -> str:
    steps = f"{experiment.training.steps} steps for every training"
    given = ", ".join(adapt.label for adapt in experiment.adaptations if adapt.options)
    tuned = f"test-time methods are tuned on validation{f', but for what was given: {given}' if given else ''}."
    if defaults:
        return f"Small budget: {steps}, every method at its default values; {tuned}"
    return f"Budget: {steps}, every method over its search space and tested as its best on validation; {tuned}"
