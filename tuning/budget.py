"""What each method got of a search: settings, trials, seeds. A comparison is fair only where that is alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dropgen.config import Trial
from dropgen.platform.evaluation.results import NAMES
from dropgen.platform.train import Workbench
from dropgen.platform.training.trial import DIVERGED, finished
from dropgen.tuning.choice import choose
from dropgen.tuning.scheduling import STOPPED


def budget(bench: Workbench, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One entry per method: `method, settings, trials, finished, stopped, diverged, steps, seeds`.

    Args:
        bench: The opened experiment.
        trials: All that were planned or begun.

    Returns:
        `settings` are combinations of hyperparameters, `trials` those that ended in one way or another, `seeds` the
        finished ones of the chosen setting, `steps` what every trial may take.
    """
    methods: dict[str, list[Trial]] = {}
    for trial in trials:
        methods.setdefault(trial.method.name, []).append(trial)
    return [_line(bench, name, members) for name, members in methods.items()]


def _line(bench: Workbench, name: str, trials: Sequence[Trial]) -> dict[str, Any]:
    folders = {trial: bench.folder(trial) for trial in trials}
    results = [result for folder in folders.values() if (result := finished(folder)) is not None]
    notes = {
        note: [trial for trial, folder in folders.items() if finished(folder) is None and (folder / note).exists()]
        for note in (STOPPED, DIVERGED)
    }
    return {
        "method": name,
        "settings": len({json.dumps(trial.method.options, sort_keys=True) for trial in trials}),
        "trials": len(results) + sum(map(len, notes.values())),
        "finished": len(results),
        "stopped": len(notes[STOPPED]),
        "diverged": len(notes[DIVERGED]),
        "steps": bench.experiment.training.steps,
        "seeds": len(choose(results).results) if results else 0,
    }


def budget_note(lines: Sequence[Mapping[str, Any]]) -> str:
    """What each method got in a sentence, and whether the chosen ones had the same number of seeds."""
    told = ", ".join(f"{NAMES.get(line['method'], line['method'])} {_said(line)}" for line in lines)
    seeds = sorted({line["seeds"] for line in lines})
    alike = (
        f"All chosen settings have {seeds[0]} seed{'' if seeds[0] == 1 else 's'}."
        if len(seeds) == 1
        else f"Not alike: the chosen settings have {seeds[0]} to {seeds[-1]} seeds."
    )
    return f"Trained: {told}. {alike}"


def _said(line: Mapping[str, Any]) -> str:
    ends = [
        f"{line[end]} {said}" for end, said in (("stopped", "stopped early"), ("diverged", "diverged")) if line[end]
    ]
    trials = f"{line['trials']} trial{'' if line['trials'] == 1 else 's'}"
    settings = f"{line['settings']} setting{'' if line['settings'] == 1 else 's'}"
    return f"{trials} ({', '.join([settings, *ends])})"
