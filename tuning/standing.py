"""How far a search is, from what lies in the folders of its trials."""

from __future__ import annotations

from typing import Any

from dropgen.config import Trial
from dropgen.manifest import read_json
from dropgen.platform.train import Workbench
from dropgen.platform.training.trial import DIVERGED, finished
from dropgen.tuning.choice import choose
from dropgen.tuning.scheduling import STOPPED
from dropgen.tuning.space import Plan, Space


def known_trials(bench: Workbench, planned: Plan) -> list[Trial]:
    """All that the plan names, and of its spaces all that were begun."""
    return [*planned.fixed, *(trial for space in planned.spaces for trial, _ in sampled(bench, space))]


def known_results(bench: Workbench, planned: Plan) -> list[tuple[Trial, dict[str, Any]]]:
    """Every finished trial of the plan, sampled ones included, from the results on disk."""
    found = ((trial, finished(bench.folder(trial))) for trial in known_trials(bench, planned))
    return [(trial, result) for trial, result in found if result is not None]


def known_divergences(bench: Workbench, planned: Plan) -> list[dict[str, Any]]:
    """Every trial of the plan whose loss was not finite: `label, method, options, seed, step, why`."""
    notes = ((trial, read_json(bench.folder(trial) / DIVERGED)) for trial in known_trials(bench, planned))
    return [
        {"method": trial.method.name, "options": trial.method.options, "seed": trial.seed, **note}
        for trial, note in notes
        if note is not None
    ]


def sampled(bench: Workbench, space: Space) -> list[tuple[Trial, float | None]]:
    """Trials of this space that were begun on the same data with the same code, with their validation Dice if ended.

    One that diverged ended with Dice 0.
    """
    found = []
    for path in sorted((bench.root / bench.experiment.name / "trials").glob("*/trial.json")):
        trial = Trial.model_validate(read_json(path)["trial"])
        if space.point(trial.method) is None or bench.folder(trial) != path.parent:
            continue
        ended = finished(path.parent) or read_json(path.parent / STOPPED)
        diverged = 0.0 if (path.parent / DIVERGED).exists() else None
        found.append((trial, float(ended["val_dice"]) if ended else diverged))
    return found


def samples(bench: Workbench, space: Space) -> int:
    """How many points of a space are tried."""
    search = bench.experiment.search
    return int(space.size if search.sampler == "grid" else min(search.trials, space.size))


def open_labels(bench: Workbench, space: Space) -> list[str]:
    """What a space still has to train, as far as it is known: the other seeds' best point is not before the first's."""
    seed, *others = bench.experiment.seeds
    known = [(trial, dice) for trial, dice in sampled(bench, space) if trial.seed == seed]
    labels = [trial.label for trial, dice in known if dice is None]
    if (missing := samples(bench, space) - len(known)) > 0:
        labels.append(f"{missing} more of {space.method.label}")
    results = [result for _, result in known_results(bench, Plan((), (space,))) if result["seed"] == seed]
    if labels or not results:
        return labels
    best = choose(results).method
    return [trial.label for other in others if is_open(bench, trial := Trial(method=best, seed=other))]


def is_open(bench: Workbench, trial: Trial) -> bool:
    """Whether a trial has not ended in one way or another."""
    folder = bench.folder(trial)
    return finished(folder) is None and not any((folder / note).exists() for note in (STOPPED, DIVERGED))


def left(bench: Workbench, planned: Plan) -> list[Trial]:
    """The trials that a search still has to train; what a sampler has not drawn yet stands at a corner of its space."""
    trials = [trial for trial in planned.fixed if is_open(bench, trial)]
    for space in planned.spaces:
        ended = [trial for trial, dice in sampled(bench, space) if dice is not None]
        begun = [trial for trial, dice in sampled(bench, space) if dice is None]
        more = samples(bench, space) + len(bench.experiment.seeds) - 1 - len(ended) - len(begun)
        corner = space.corners()[-1]
        trials += [*begun, *(Trial(method=corner, seed=bench.experiment.seeds[0]) for _ in range(more))]
    return trials
