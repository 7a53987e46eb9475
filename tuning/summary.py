"""What an experiment found: one row per trial, and the finding in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dropgen.platform.evaluation.results import Group, group_rows
from dropgen.tuning.choice import PROPOSED, choose

BASELINE = "erm"


def table_rows(results: Sequence[dict[str, Any]], evaluations: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per trial; Dice in 0..1.

    Args:
        results: The trials' results.
        evaluations: By trial key, what `evaluate_trial` returned.

    Returns:
        `method, p` (None unless the method is DropGen)`, seed, steps, converged, val_dice, selected, source_dice,
        target_dice` (mean over subjects of each unseen domain)`, data_wait` and where the trial lies. `selected` marks
        the rows of the chosen DropGen hyperparameters, and no row of an experiment without DropGen.
    """
    chosen = {result["key"] for result in choose(results).results if result["method"] == PROPOSED}
    return [
        {
            "method": result["method"],
            "p": result["p"] if result["method"] == PROPOSED else None,
            "seed": result["seed"],
            "steps": result["steps"],
            "best_step": result["best_step"],
            "converged": result["converged"],
            "val_dice": result["val_dice"],
            "selected": result["key"] in chosen,
            "source_dice": evaluations[result["key"]]["source_dice"],
            "target_dice": dict(evaluations[result["key"]]["target_dice"]),
            "options": result["options"],
            "seconds": result["seconds"],
            "data_wait": result["data_wait"],
            "commit": result["commit"],
            "trial": result["key"],
            "folder": result["folder"],
        }
        for result in results
    ]


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """The finding, whoever wins: the first line of the page and of the terminal."""
    groups = group_rows(rows)
    ours = next((group for group in groups if group.selected), None)
    if ours is None:
        best = max(groups, key=lambda group: group.spread("val_dice").mean or 0.0)
        return f"{best.name} has the best validation Dice, {_points(best, 'val_dice')}; DropGen was not part of this."
    rivals = [group for group in groups if group.method != PROPOSED and group.spread("unseen").mean is not None]
    ours_unseen = ours.spread("unseen").mean
    zero = "The chosen p is 0: on the validation cases dropping channels did not help. " if _p(ours) == 0 else ""
    if ours_unseen is None:
        return f"{zero}{ours.name} has validation Dice {_points(ours, 'val_dice')}; no unseen domain has labels."
    where = f"on the mean of {_domains(rows)}, {_seeds(ours)}"
    winner = max(rivals, key=lambda group: group.spread("unseen").mean or 0.0, default=None)
    if winner is not None and (winner.spread("unseen").mean or 0.0) > ours_unseen:
        return (
            f"{zero}{winner.name} wins with {_points(winner, 'unseen')} Dice against {_points(ours, 'unseen')} of "
            f"{ours.name} {where}."
        )
    baseline = next((group for group in rivals if group.method == BASELINE), None)
    if baseline is None:
        return f"{zero}{ours.name} reaches {_points(ours, 'unseen')} Dice {where}."
    gain = 100 * (ours_unseen - (baseline.spread("unseen").mean or 0.0))
    return (
        f"{zero}{ours.name} gains {gain:.1f} Dice points over {baseline.name} "
        f"({_points(baseline, 'unseen')} to {_points(ours, 'unseen')}) {where}."
    )


def _p(group: Group) -> float | None:
    p: float | None = group.rows[0]["p"]
    return p


def _points(group: Group, column: str) -> str:
    mean = group.spread(column).mean
    return "–" if mean is None else f"{100 * mean:.1f}"


def _domains(rows: Sequence[Mapping[str, Any]]) -> str:
    count = len({name for row in rows for name, dice in row["target_dice"].items() if dice is not None})
    return "one unseen domain" if count == 1 else f"{count} unseen domains"


def _seeds(group: Group) -> str:
    return "one seed" if len(group.rows) == 1 else f"{len(group.rows)} seeds"
