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
from dropgen.platform.catalogue import Entry, catalogue
from dropgen.platform.methods import build
from dropgen.platform.methods.page import markdown

HEADINGS = {
    "method": "methods",
    "ablation": "ablations",
    "composition": "compositions",
    "adaptation": "test-time methods (dropgen evaluate --adapt)",
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
    """An experiment of this method over its search space, beside the ERM baseline.

    Raises:
        ConfigError: There is no such method.
    """
    method = build(Component.of(name))
    space = {key: list(values) for key, values in method.search_space.items()}
    methods = [{"name": method.name, **space}]
    online = method.needs_features and method.needs_online
    return {
        "name": "-".join(["my", *re.split(r"[_+]", method.name)]),
        "study": "study.yaml",
        "methods": methods if method.name == "erm" else [{"name": "erm"}, *methods],
        "seeds": [42],
        **({"features": {"source": "online"}} if online else {}),
        "training": {"steps": 10000, "batch": 4},
        "selection": {"rule": "target_validation"},
    }
