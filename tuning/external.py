"""Training and testing what other programs train, one trial after the other: each takes the machine for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dropgen.config import Trial
from dropgen.console import progress
from dropgen.platform.external import EXTERNALS
from dropgen.platform.train import Workbench


def run_externals(bench: Workbench, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The results of external trials, each with its summary under `evaluation`.

    Raises:
        ExternalError: A program failed; the results before it are on disk.
    """
    results = []
    with progress("steps") as bars:
        for trial in trials:
            bar = bars.add_task(trial.label, total=None, note="")

            def show(doing: str, step: int, bar: Any = bar) -> None:
                bars.update(bar, completed=step, note=doing)

            result = EXTERNALS[trial.method.name].run(bench, trial, show)
            bars.update(
                bar, total=result["steps"], completed=result["steps"], note=f"val Dice {result['val_dice']:.3f}"
            )
            results.append(result)
    return results
