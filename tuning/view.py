"""What a person sees of a search while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.progress import Progress

from dropgen.config import Trial


class View:
    """One bar over the steps of all trials, with the trials that have ended and the best Dice so far.

    Args:
        bars: Where the bar is drawn.
        steps: Optimisation steps of one trial.
        total: Number of trials of the whole search.
        results: Results of trials that have ended before.
    """

    def __init__(self, bars: Progress, steps: int, total: int, results: list[dict[str, Any]]) -> None:
        self._bars, self._steps, self._total = bars, steps, total
        self._at: dict[str, int] = {result["label"]: steps for result in results}
        self._finished = len(results)
        self._best = max((float(result["val_dice"]) for result in results), default=None)
        self._task = bars.add_task("search", total=total * steps, completed=self._finished * steps, note="")

    def progressed(self, trial: Trial, metrics: Mapping[str, Any]) -> None:
        """A trial reported."""
        self._at[trial.label] = metrics["step"]
        if metrics["validated_step"]:
            self._best = max(metrics["val_dice"], self._best or 0.0)
        self._draw()

    def ended(self, trial: Trial) -> None:
        """A trial finished, or was given up early."""
        self._at[trial.label] = self._steps
        self._finished += 1
        self._draw()

    def _draw(self) -> None:
        best = "" if self._best is None else f", val Dice {100 * self._best:.1f}"
        note = f"{self._finished}/{self._total} trials{best}"
        self._bars.update(self._task, completed=sum(self._at.values()), note=note)
