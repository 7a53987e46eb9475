"""Leave-one-domain-out: what trainings without one domain each say together of a training with all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dropgen.platform.evaluation.results import finite_mean
from dropgen.platform.training.loop import Progress

FOLDS = "folds"
Curve = list[tuple[int, float]]  # step and Dice of the left-out domain


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over left-out domains at every step: its best step is the final checkpoint, its best Dice the score.

    Args:
        curves: Validated at the same steps.
    """
    if not curves:
        return []
    return [(step, finite_mean(curve[place][1] for curve in curves)) for place, (step, _) in enumerate(curves[0])]


def part_of(on_progress: Callable[[Progress], None], number: int, trainings: int) -> Callable[[Progress], None]:
    """Reports one of several trainings as a part of the steps of one trial.

    Args:
        on_progress: Of the trial.
        number: Of the training, from 0.
        trainings: How many the trial is.
    """

    def report(progress: Progress) -> None:
        on_progress(replace(progress, step=(number * progress.steps + progress.step) // trainings))

    return report
