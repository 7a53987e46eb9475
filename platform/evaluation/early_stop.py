"""What early stopping saved and what it cost: a search that stops trials beside one that trains the whole grid.

A scheduler stops a trial by its score at a rung. That is right as far as scores at the rung are in the order of the
final ones, which is measured on trials that nothing stopped: dropout curves cross.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from dropgen.errors import ConfigError
from dropgen.platform.evaluation.metrics import Spread
from dropgen.platform.evaluation.results import ABSENT, display_name, points

LEAST = 3  # trials that make an order
TITLES = {"asha": "ASHA", "hyperband": "Hyperband", "median": "Median stopping"}
Curve = Sequence[Sequence[float]]  # step and validation Dice


@dataclass(frozen=True)
class Rung:
    """How scores at one rung agree with the final ones.

    Attributes:
        step: Of the rung.
        n: Trials that were trained to the end.
        spearman: Rank correlation of the best Dice up to the rung with the best of all; None for fewer than three
            trials, or where all are equal.
        kendall: The other one, tau-b.
    """

    step: int
    n: int
    spearman: float | None
    kendall: float | None


@dataclass(frozen=True)
class Verdict:
    """One method's search with early stopping against the whole grid.

    Attributes:
        method: Its name.
        chosen: The setting that early stopping chose, as people write it.
        best: The grid's.
        chosen_dice: Mean validation Dice of the chosen setting in the grid, over seeds, 0..1.
        best_dice: That of the best.
        se: Standard error of that over seeds; None for one seed.
        within: Whether the chosen is at most one standard error below the best; None for one seed.
        steps: Training steps of the first seed under early stopping.
        grid_steps: Those of the grid.
        rungs: Agreement of each rung with the end, on the grid's trials of that seed.
    """

    method: str
    chosen: str
    best: str
    chosen_dice: float
    best_dice: float
    se: float | None
    within: bool | None
    steps: int
    grid_steps: int
    rungs: tuple[Rung, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def agreement(curves: Sequence[Curve], rungs: Sequence[int]) -> tuple[Rung, ...]:
    """Rank correlations of every rung with the end.

    Args:
        curves: Validation curves of trials that were trained to the end.
        rungs: Steps at which a scheduler looks; it sees the first validation from there on.
    """
    final = [_best_until(curve, math.inf) for curve in curves]
    found = []
    for rung in rungs:
        early = [_best_until(curve, rung) for curve in curves]
        ordered = len(curves) >= LEAST and len(set(early)) > 1 and len(set(final)) > 1
        spearman, kendall = (
            (float(stats.spearmanr(early, final).statistic), float(stats.kendalltau(early, final).statistic))
            if ordered
            else (None, None)
        )
        found.append(Rung(rung, len(curves), spearman, kendall))
    return tuple(found)


def judge(grid: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> list[Verdict]:
    """Compares, method by method, what early stopping chose with what the whole grid knows.

    Args:
        grid: Results (`result.json`) of every setting and seed, trained to the end.
        record: `early_stop` of the summary of the search that stopped trials.

    Raises:
        ConfigError: The grid lacks a setting that was searched, or its trials have other steps.
    """
    return [_verdict(grid, record, line) for line in record["methods"]]


def _verdict(grid: Sequence[Mapping[str, Any]], record: Mapping[str, Any], line: Mapping[str, Any]) -> Verdict:
    settings: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in grid:
        if result["method"] == line["method"]:
            settings.setdefault(_key(result["options"]), {})[result["seed"]] = result
    for trial in line["trials"]:
        name = display_name({"method": line["method"], "p": None, "options": trial["options"]})
        known = settings.get(_key(trial["options"]), {})
        if record["seed"] not in known:
            raise ConfigError(f"the grid has no {name} with seed {record['seed']}; train it with search.scheduler=none")
        if known[record["seed"]]["steps"] != record["steps"]:
            raise ConfigError(
                f"{name} has {known[record['seed']]['steps']} steps in the grid and {record['steps']} under "
                f"{record['scheduler']}; give both the same training.steps"
            )
    tried = {key: settings[key] for key in (_key(trial["options"]) for trial in line["trials"])}
    spreads = {key: Spread.of(result["val_dice"] for result in seeds.values()) for key, seeds in tried.items()}
    best = max(spreads, key=lambda key: spreads[key].mean or 0.0)
    chosen = _key(line["chosen"])
    gap, se = (spreads[best].mean or 0.0) - (spreads[chosen].mean or 0.0), spreads[best].se
    first = [seeds[record["seed"]] for seeds in tried.values()]
    return Verdict(
        method=line["method"],
        chosen=_name(tried[chosen]),
        best=_name(tried[best]),
        chosen_dice=spreads[chosen].mean or 0.0,
        best_dice=spreads[best].mean or 0.0,
        se=se,
        within=None if se is None else gap <= se,
        steps=sum(trial["steps"] for trial in line["trials"]),
        grid_steps=len(tried) * record["steps"],
        rungs=agreement([result["curve"]["validation"] for result in first], record["rungs"]),
    )


def early_stop_note(record: Mapping[str, Any]) -> list[str]:
    """What one search alone can say: steps used, how many were stopped, how the finished trials kept their order."""
    said = []
    for line in record["methods"]:
        used, whole = sum(trial["steps"] for trial in line["trials"]), len(line["trials"]) * record["steps"]
        stopped = sum(trial["stopped"] for trial in line["trials"])
        name = display_name({"method": line["method"], "p": None, "options": {}})
        rungs = agreement([trial["curve"] for trial in line["trials"] if not trial["stopped"]], record["rungs"])
        ranks = ", ".join(f"{rung.step}: {_signed(rung.spearman)}" for rung in rungs)
        said.append(
            f"{TITLES[record['scheduler']]} spent {used} of {whole} steps ({100 * used / whole:.0f}%) on {name}'s "
            f"{len(line['trials'])} settings with seed {record['seed']} and stopped {stopped}. Spearman's rank "
            f"correlation of each rung with the end, among the {len(line['trials']) - stopped} that it finished, by "
            f"step: {ranks or ABSENT}; what was stopped has no end, dropgen compare GRID THIS --search ranks all."
        )
    return said


def verdict_lines(found: Sequence[Verdict], scheduler: str, grid: str, stopped: str) -> list[str]:
    """The comparison as a page of Markdown."""
    scheduler = TITLES[scheduler]
    lines = [f"# {scheduler} beside the whole grid", "", f"`{stopped}` under {scheduler}, `{grid}` trained whole.", ""]
    for one in found:
        share = 100 * one.steps / one.grid_steps
        close = {
            True: "at most one standard error below it",
            False: "more than one standard error below it",
            None: "of one seed, so that there is no standard error to judge it by",
        }[one.within]
        error = "" if one.se is None else f" ± {100 * one.se:.1f}"
        lines += [
            f"{scheduler} used {one.steps} of the grid's {one.grid_steps} steps ({share:.0f}%) with the first seed. It "
            f"chose {one.chosen}, which has validation Dice {points(one.chosen_dice)} in the grid; the grid's best is "
            f"{one.best} with {points(one.best_dice)}{error}: the choice is {close}.",
            "",
            "| rung, step | trials | Spearman with the end | Kendall with the end |",
            "|--:|--:|--:|--:|",
            *(f"| {rung.step} | {rung.n} | {_signed(rung.spearman)} | {_signed(rung.kendall)} |" for rung in one.rungs),
            "",
        ]
    return lines


def _best_until(curve: Curve, step: float) -> float:
    """The best Dice of the validations up to the first one at or after a step, which is what a rung sees."""
    seen = []
    for at, dice in curve:
        seen.append(dice)
        if at >= step:
            break
    return max(seen, default=math.nan)


def _key(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True)


def _name(seeds: Mapping[int, Mapping[str, Any]]) -> str:
    result = next(iter(seeds.values()))
    return display_name({"p": None, "method": result["method"], "options": result["options"]})


def _signed(value: float | None) -> str:
    return ABSENT if value is None else f"{value:+.2f}".replace("-", "−")
