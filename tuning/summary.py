"""What an experiment found: one row per trial, and the finding in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dropgen.platform.evaluation.results import Group, chosen_of_each, group_rows, points, ranking
from dropgen.platform.evaluation.significance import may_be_called_better
from dropgen.platform.methods import METHODS
from dropgen.tuning.choice import PROPOSED, choose

BASELINE = "erm"


def table_rows(results: Sequence[dict[str, Any]], evaluations: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per trial; Dice in 0..1.

    Args:
        results: The trials' results.
        evaluations: By trial key, what `evaluate_trial` returned.

    Returns:
        `method, p` (None unless the method is DropGen)`, seed, steps, converged, val_dice, selected, source_dice,
        target_dice` (mean over subjects of each unseen domain)`, data_wait, adaptation` (None) and where the trial and
        its evaluation lie. `selected` marks the rows of the chosen DropGen hyperparameters, and no row of an experiment
        without DropGen.
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
            "adaptation": None,
            "evaluation": str(Path(result["folder"]) / "evaluation"),
        }
        for result in results
        if result["key"] in evaluations
    ]


def adapted_rows(
    rows: Sequence[Mapping[str, Any]], adapted: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """One row per trial and test-time method that met: `method` is `erm+tent`, `adaptation` what was chosen.

    Args:
        rows: Of the plain trials.
        adapted: From `evaluations.adapt_all`.

    Returns:
        Rows as `table_rows`; `val_dice` is that of the tuned prediction, `seconds` those of tuning.
    """
    return [
        {
            **row,
            "method": f"{row['method']}+{summary['adaptation']['name']}",
            "selected": False,
            "val_dice": summary["adaptation"]["val_dice"],
            "source_dice": summary["source_dice"],
            "target_dice": dict(summary["target_dice"]),
            "seconds": summary["adaptation"]["seconds"],
            "adaptation": summary["adaptation"],
            "evaluation": str(Path(row["folder"]) / f"evaluation-{label}"),
        }
        for label, summaries in adapted.items()
        for row in rows
        if "adaptation" in (summary := summaries.get(row["trial"], {}))
    ]


def absent_rows(
    rows: Sequence[Mapping[str, Any]],
    diverged: Sequence[Mapping[str, Any]],
    adapted: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """What has no result, with the reason: `method, options, seed, reason`.

    Args:
        rows: Of the plain trials.
        diverged: From `standing.known_divergences`.
        adapted: From `evaluations.adapt_all`.
    """
    lost = [
        {**{key: trial[key] for key in ("method", "options", "seed")}, "reason": f"diverged at step {trial['step']}"}
        for trial in diverged
    ]
    refused = [
        {
            "method": f"{row['method']}+{label.partition(' ')[0]}",
            "options": row["options"],
            "seed": row["seed"],
            "reason": f"unavailable: {summary['unavailable']}",
        }
        for label, summaries in adapted.items()
        for row in rows
        if "unavailable" in (summary := summaries.get(row["trial"], {}))
    ]
    return lost + refused


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, those of the best rank on unseen domains first, those without a rank last."""
    places = sorted(ranking(group_rows(rows)), key=lambda place: math.inf if place.rank is None else place.rank)
    return [dict(row) for place in places for row in place.group.rows]


def ranking_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per line of the table: `name, method, rank, unseen, se, seeds`."""
    return [
        {
            "name": place.group.name,
            "method": place.group.method,
            "rank": place.rank,
            "unseen": place.unseen.mean,
            "se": place.unseen.se,
            "seeds": len(place.group.rows),
        }
        for place in ranking(group_rows(rows))
    ]


def extraction_of(stored: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How often features were extracted and read: `entries, extracted, trials`.

    Args:
        stored: What the stage that fills the store left: entries of features that the study has there, and how many of
            them it computed; the others were there.
        results: Of all trained trials.
    """
    readers = sum(result["features"] == "stored" for result in results)
    return {"entries": stored.get("entries", 0), "extracted": stored.get("extracted", 0), "trials": readers}


def extraction_notes(extraction: Mapping[str, int]) -> list[str]:
    """That sentence; none where nothing was stored."""
    entries, extracted, trials = (extraction[name] for name in ("entries", "extracted", "trials"))
    if not entries:
        return []
    found = entries - extracted
    return [
        f"Features of {entries} volumes lie in one store, each extracted once ({extracted} in this run, {found} found "
        f"there), and {trials} trial{' has' if trials == 1 else 's have'} read them."
    ]


def seed_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for every method that is published as the best of its seeds: what that rule would have said."""
    groups = [group for group in group_rows(rows) if len(group.rows) > 1 and group.method in METHODS]
    return [
        f"{group.name} is published as the best of its seeds on validation, here seed {group.lead['seed']} with "
        f"{points(group.lead_value('unseen'))} on unseen domains; its row, as every other, is the mean over seeds."
        for group in groups
        if METHODS[group.method].best_seed
    ]


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """The finding, whoever wins: the first line of the page and of the terminal."""
    groups = group_rows(rows)
    ours = next((group for group in groups if group.selected), None)
    if ours is None:
        best = max(groups, key=lambda group: group.spread("val_dice").mean or 0.0)
        return f"{best.name} has the best validation Dice, {_points(best, 'val_dice')}; DropGen was not part of this."
    others = (group for group in chosen_of_each(groups) if group.method != PROPOSED)
    rivals = [group for group in others if group.spread("unseen").mean is not None]
    ours_unseen = ours.spread("unseen").mean
    zero = "The chosen p is 0: on the validation cases dropping channels did not help. " if _p(ours) == 0 else ""
    if ours_unseen is None:
        return f"{zero}{ours.name} has validation Dice {_points(ours, 'val_dice')}; no unseen domain has labels."
    where = f"on the mean of {_domains(rows)}, {_seeds(ours)}"
    winner = max(rivals, key=lambda group: group.spread("unseen").mean or 0.0, default=None)
    if winner is not None and (winner.spread("unseen").mean or 0.0) > ours_unseen:
        fair = _loss(winner, ours)
        verb = "has" if fair else "wins with"
        return (
            f"{zero}{winner.name} {verb} {_points(winner, 'unseen')} Dice against {_points(ours, 'unseen')} of "
            f"{ours.name} {where}{fair}."
        )
    baseline = next((group for group in rivals if group.method == BASELINE), None)
    if baseline is None:
        return f"{zero}{ours.name} reaches {_points(ours, 'unseen')} Dice {where}."
    gain = 100 * (ours_unseen - (baseline.spread("unseen").mean or 0.0))
    return (
        f"{zero}{ours.name} gains {gain:.1f} Dice points over {baseline.name} "
        f"({_points(baseline, 'unseen')} to {_points(ours, 'unseen')}) {where}"
        f"{_loss(ours, baseline) if gain > 0 else ''}."
    )


def _loss(ahead: Group, other: Group) -> str:
    """Why the one that is ahead on unseen domains is not called better all the same; empty where it may be."""
    one, two = ahead.spread("source_dice").mean, other.spread("source_dice").mean
    if one is None or two is None:
        return ", but is not called better: nothing was measured on the source"
    if may_be_called_better(math.inf, one - two):
        return ""
    return f", but is not called better: on the source it loses {100 * (two - one):.1f} points"


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
