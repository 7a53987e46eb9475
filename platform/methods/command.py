"""`dropgen methods`: lists everything that can be compared, or prints an experiment to start from."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from typing import Any

import yaml

from dropgen.config import Component
from dropgen.console import say
from dropgen.errors import ConfigError, closest
from dropgen.features.extractors import EXTRACTORS
from dropgen.platform.adaptation import ADAPTATIONS
from dropgen.platform.catalogue import Entry, catalogue
from dropgen.platform.external import EXTERNALS
from dropgen.platform.methods import ALIASES, METHODS, Method, build
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.erm import Erm
from dropgen.platform.methods.page import markdown
from dropgen.platform.methods.rep_only import RepOnly

HEADINGS = {
    "method": "methods",
    "ablation": "ablations",
    "composition": "compositions",
    "adaptation": "test-time methods (dropgen evaluate --adapt, dropgen segment --adapt)",
    "extractor": "extractors (features.extractor)",
    "external": "external baselines",
}


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """One line per part, the page `docs/methods.md`, or with `--yaml NAME` an experiment with its search space."""
    if arguments.yaml:
        experiment = starting_point(arguments.yaml)
        say(yaml.safe_dump(experiment, sort_keys=False).rstrip())
        return {"experiment": experiment}
    entries = catalogue()
    say(markdown(entries).rstrip() if arguments.markdown else listing(entries))
    return {"methods": [dataclasses.asdict(entry) for entry in entries]}


def listing(entries: tuple[Entry, ...]) -> str:
    """The parts under a heading for each kind: name, where it acts, hyperparameters with their defaults."""
    width = max(len(entry.name) for entry in entries)
    lines = []
    for kind, members in itertools.groupby(entries, key=lambda entry: entry.kind):
        lines += ["", f"{HEADINGS[kind]}:"]
        for entry in members:
            options = ", ".join(f"{key}={value}" for key, value in entry.hyperparameters.items()) or "–"
            lines.append(f"  {entry.name:{width}}  {entry.acts_on:10}  {options}")
    return "\n".join(lines).strip()


def starting_point(name: str) -> dict[str, Any]:
    """An experiment of this part beside the ERM baseline, a method over its search space.

    A test-time method comes with the models that it is published for, an extractor under DropGen.

    Raises:
        ConfigError: There is no such part.
    """
    seeds = [42]
    sections: dict[str, Any] = {}
    if name in ADAPTATIONS:
        adaptation = ADAPTATIONS[name]
        models = [{"name": model.name, **model.options} for model in adaptation.adapts]
        methods = [*models, *([{"name": RepOnly.name}] if adaptation.needs_stable else [])]
        sections = {"adaptations": [{"name": name}]}
    elif name in EXTRACTORS:
        methods = [_over_space(DropGen)]
        sections = {"features": {"extractor": {"name": name}}}
    elif name in EXTERNALS:
        methods = [{"name": name}]
    else:
        method = _method(name)
        methods = [_over_space(method)]
        if method.needs_features and method.needs_online:
            sections = {"features": {"source": "online"}}
        if method.best_seed:
            seeds = [42, 43, 44]  # as many as the published result is the best of
    name = str(methods[0]["name"]) if name in ALIASES else name
    return {
        "name": "-".join(["my", *re.split(r"[_+]", name)]),
        "study": "study.yaml",
        "methods": methods if methods[0]["name"] == Erm.name else [{"name": Erm.name}, *methods],
        "seeds": seeds,
        **sections,
        "training": {"steps": 10000, "batch": 4},
        "selection": {"rule": "target_validation"},
    }


def _method(name: str) -> type[Method]:
    known = [*METHODS, *ADAPTATIONS, *EXTRACTORS, *EXTERNALS]
    if "+" not in name and ALIASES.get(name, name) not in known:
        raise ConfigError(f"unknown method '{name}'{closest(name, known)}")
    return type(build(Component.of(name)))


def _over_space(method: type[Method]) -> dict[str, Any]:
    return {"name": method.name, **{key: list(values) for key, values in method.search_space.items()}}
