"""`dropgen methods`: lists methods and extractors, or prints an experiment to start from."""

from __future__ import annotations

import argparse
import re
from typing import Any

import yaml

from dropgen.config import Component
from dropgen.console import say
from dropgen.features.extractors import EXTRACTORS
from dropgen.platform.methods import METHODS, build


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints one line per method and extractor; with `--yaml NAME` an experiment with its search space."""
    if arguments.yaml:
        experiment = starting_point(arguments.yaml)
        say(yaml.safe_dump(experiment, sort_keys=False).rstrip())
        return {"experiment": experiment}
    methods = [describe(name) for name in METHODS]
    width = max(map(len, METHODS))
    for method in methods:
        options = ", ".join(f"{key}={value}" for key, value in method["hyperparameters"].items()) or "none"
        say(f"{method['name']:{width}} acts on {method['acts_on']:8} hyperparameters: {options}")
    say(f"extractors: {', '.join(EXTRACTORS)}")
    return {"methods": methods, "extractors": sorted(EXTRACTORS)}


def describe(name: str) -> dict[str, Any]:
    """What a registered method is, as plain values."""
    method = build(Component.of(name))
    return {
        "name": name,
        "kind": "method",
        "acts_on": method.acts_on,
        "hyperparameters": METHODS[name].options(),
        "search_space": {key: list(values) for key, values in method.search_space.items()},
        "needs_features": method.needs_features,
        "source": method.source,
    }


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
