"""Choosing hyperparameters and the champion, by validation Dice alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dropgen.config import Component, Experiment
from dropgen.platform.adaptation import ADAPTATIONS
from dropgen.platform.methods import build

PROPOSED = "dropgen"


@dataclass(frozen=True)
class Group:
    """The results of one method with one set of hyperparameters, one per seed."""

    method: Component
    results: tuple[dict[str, Any], ...]

    @property
    def val_dice(self) -> float:
        """Mean validation Dice over seeds, 0..1."""
        return fmean(result["val_dice"] for result in self.results)


def groups(results: Sequence[dict[str, Any]]) -> list[Group]:
    """Puts the seeds of each method and hyperparameters together, in order of first appearance."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(json.dumps([result["method"], result["options"]], sort_keys=True), []).append(result)
    return [
        Group(Component.of(members[0]["method"], **members[0]["options"]), tuple(members)) for members in found.values()
    ]


def choose(results: Sequence[dict[str, Any]]) -> Group:
    """The hyperparameters with the best validation Dice, averaged over seeds.

    Chosen among DropGen's where the experiment has any, otherwise among all methods. Only groups
    with the full number of seeds compete: a mean over fewer seeds is a luckier draw.
    """
    every = groups(results)
    return _best([group for group in every if group.method.name == PROPOSED] or every)


def choose_each(results: Sequence[dict[str, Any]]) -> list[Group]:
    """Of every method the hyperparameters with the best validation Dice, as `choose`, in order of first appearance."""
    methods: dict[str, list[Group]] = {}
    for group in groups(results):
        methods.setdefault(group.method.name, []).append(group)
    return [_best(members) for members in methods.values()]


def keys_to_test(experiment: Experiment, results: Sequence[dict[str, Any]]) -> set[str]:
    """Keys of the results whose trials are tested: all, or with `search.test: chosen` those that the choices left.

    These are every method's best hyperparameters, and those that a test-time method is published for.
    """
    if experiment.search.test == "every":
        return {result["key"] for result in results}
    adapted = [build(one) for adapt in experiment.adaptations for one in ADAPTATIONS[adapt.name].adapts]
    kept = [*choose_each(results), *(group for group in groups(results) if build(group.method) in adapted)]
    return {result["key"] for group in kept for result in group.results}


def _best(entrants: Sequence[Group]) -> Group:
    seeds = max(len(group.results) for group in entrants)
    return max((group for group in entrants if len(group.results) == seeds), key=lambda group: group.val_dice)


def champion(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best seed of the chosen hyperparameters."""
    return max(choose(results).results, key=lambda result: float(result["val_dice"]))
