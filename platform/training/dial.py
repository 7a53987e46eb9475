"""Chooses on validation cases what training did not depend on, with the trained network at hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dropgen.config import Component
from dropgen.platform.methods import build
from dropgen.platform.segmenter import Segmenter


@dataclass(frozen=True)
class Dialled:
    """A choice and what it was made from.

    Attributes:
        segmenter: The trained one under the chosen values.
        options: The chosen values.
        val_dice: Its mean validation Dice, 0..1.
        tried: Every combination with its Dice, in the order of trying.
    """

    segmenter: Segmenter
    options: dict[str, Any]
    val_dice: float
    tried: list[tuple[dict[str, Any], float]]


def dial(component: Component, load: Callable[[], Segmenter], score: Callable[[Segmenter], float]) -> Dialled | None:
    """Tries what the method leaves open until after training; the first among equals wins.

    Args:
        component: The method as the experiment gives it; an option that stands there is not open.
        load: The network that training kept; not called where nothing is open.
        score: Mean validation Dice of a segmenter, in 0..1, NaN where it has none.

    Returns:
        None where nothing is open.
    """
    values_of = build(component).after_training
    free = {name: values for name, values in values_of.items() if name not in component.options}
    if not free:
        return None
    trained = load()
    grid = [dict(zip(free, values, strict=True)) for values in itertools.product(*free.values())]
    tried = [(options, score(trained.with_options(**options))) for options in grid]
    best, dice = max(tried, key=lambda entry: -math.inf if math.isnan(entry[1]) else entry[1])
    return Dialled(trained.with_options(**best), best, dice, tried)
