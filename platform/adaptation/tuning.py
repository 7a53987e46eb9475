"""Chooses a test-time method's hyperparameters on labelled validation volumes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dropgen.config import Component
from dropgen.platform.adaptation import ADAPTATIONS, Adaptation, Target, build
from dropgen.platform.adaptation.adapted import SEED
from dropgen.platform.evaluation.metrics import Scored, labelled_dice, mean_dice


@dataclass(frozen=True, eq=False)
class Labelled:
    """A validation volume: whose it is, what the models meet, and its label `[X, Y, Z]` on the prepared grid."""

    case: Scored
    target: Target
    label: np.ndarray


def combinations(component: Component) -> list[dict[str, Any]]:
    """Every combination of the search space; options that the component gives are not searched."""
    space = ADAPTATIONS[component.name].search_space
    free = {key: values for key, values in space.items() if key not in component.options}
    return [dict(zip(free, values, strict=True)) for values in itertools.product(*free.values())]


def tune(
    component: Component, cases: Callable[[], Iterable[Labelled]], on_try: Callable[[], None] = lambda: None
) -> tuple[Adaptation, float]:
    """The combination of the search space with the best mean validation Dice, the first among equals.

    Volumes are visited one at a time and every combination tried on each, so that predictions which do not depend on
    the hyperparameters are made once.

    Args:
        component: Name and given options.
        cases: Starts a pass over the validation volumes; one for what is fitted, one for the search.
        on_try: Called after every combination on every volume.

    Returns:
        The method with the values chosen, and its mean Dice in 0..1.
    """
    calibrated = build(component).calibrated((one.target, one.label) for one in cases())
    grid = [dataclasses.replace(calibrated, **values) for values in combinations(component)]
    scores: list[list[tuple[Scored, np.ndarray]]] = [[] for _ in grid]
    for one in cases():
        labelling = one.target.model.spec.labelling
        for adaptation, scored in zip(grid, scores, strict=True):
            mask = adaptation.scores(one.target, np.random.default_rng(SEED)).argmax(dim=0).numpy()
            scored.append((one.case, labelled_dice(mask, one.label, labelling)))
            on_try()
    means = [mean_dice(scored) for scored in scores]
    best = max(range(len(grid)), key=lambda i: -math.inf if math.isnan(means[i]) else means[i])
    return grid[best], means[best]
