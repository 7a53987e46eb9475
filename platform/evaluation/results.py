"""An experiment's results as pages and tables show them: trials grouped by method, cases with their Dice."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from dropgen.config import INTENSITY
from dropgen.manifest import read_json
from dropgen.platform.evaluation.metrics import Spread

NAMES = {
    "erm": "ERM",
    "rep_only": "RepOnly",
    "dropgen": "DropGen",
    "gin": "GIN",
    "gin_ipa": "GIN+IPA",
    "mixup": "MixUp",
    "cutout": "CutOut",
    "layer_dropout": "Per-layer dropout",
    "mixstyle": "MixStyle",
    "rsc": "RSC",
    "dsbn": "DSBN",
    "dropgen_any_p": "DropGen, any p",
    "structured_dropout": "Structured dropout",
    "squeeze_excite": "Squeeze+Excite",
    "finetune_extractor": "Finetune extractor",
    "finetune_decoder": "Finetune decoder",
    "finetune_scratch": "Finetune from scratch",
    "nnunet": "nnU-Net",
}
NAMES |= {"tent": "TENT", "sfb": "SFB", "alpha": "Alpha Tuning", "nnunet": "nnU-Net"}
ABSENT = "–"
CASE_COLUMNS = {"case", "subject", "domain", "split", "class"}  # of cases.csv; every other one is a measure

# A row of `summary.json`: method, p, options, seed, steps, converged, val_dice, selected, source_dice,
# target_dice (mean over subjects of each unseen domain), adaptation (None, or what a test-time method chose), and
# where the trial and its evaluation lie. Dice in 0..1.
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """One line of the table: the seeds of one method with one set of options."""

    name: str
    method: str
    rows: tuple[Row, ...]

    @property
    def selected(self) -> bool:
        """Whether the selection rule chose it."""
        return any(row["selected"] for row in self.rows)

    @property
    def lead(self) -> Row:
        """The seed with the best validation Dice."""
        return max(self.rows, key=lambda row: float(row["val_dice"]))

    def lead_value(self, column: str) -> float:
        """That seed's value of a column, as `spread` names them; NaN where there is none."""
        return _value(self.lead, column)

    def measured(self, measure: str, domains: Sequence[str]) -> Spread:
        """Over seeds, of a measure's mean over domains, each the mean over its subjects; empty where none is known."""
        return Spread.of(_measured(row, measure, domains) for row in self.rows)

    def subjects(self, measure: str, domains: Sequence[str]) -> int:
        """How many subjects that mean stands on, in the seed with the fewest."""
        return min(_subjects_measured(row, measure, domains) for row in self.rows)

    def spread(self, column: str) -> Spread:
        """Over seeds, 0..1: "val_dice", "source_dice", an unseen domain, or "unseen" for their mean."""
        return Spread.of(_value(row, column) for row in self.rows)


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """Puts the seeds of each method with the same options together, in order of first appearance."""
    members: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        members.setdefault((row["method"], display_name(row)), []).append(row)
    return [Group(name, method, tuple(found)) for (method, name), found in members.items()]


def chosen_of_each(groups: Iterable[Group]) -> list[Group]:
    """Of every method the line that validation chose, in order of first appearance.

    That is the selected one where there is one, else the best mean over the full number of seeds: a mean over fewer is
    a luckier draw.
    """
    methods: dict[str, list[Group]] = {}
    for group in groups:
        methods.setdefault(group.method, []).append(group)
    return [_chosen(members) for members in methods.values()]


def rules_note(groups: Iterable[Group], rule: str | Mapping[str, str]) -> str:
    """By which intensity rule every method was trained and tested: of several that it tried, its best on validation.

    Args:
        groups: The lines of a table.
        rule: The study's own, or one per modality.
    """
    own = rule if isinstance(rule, str) else ", ".join(f"{modality}: {one}" for modality, one in sorted(rule.items()))
    groups = list(groups)
    if not any(INTENSITY in group.rows[0]["options"] for group in groups):
        return f"Intensities of every method that is trained here are scaled by {own}."
    tried = {group.method: set[str]() for group in groups}
    for group in groups:
        tried[group.method].add(str(group.rows[0]["options"].get(INTENSITY, own)))
    told = [
        f"{display_name({'method': group.method, 'p': None, 'options': {}})} "
        f"{group.rows[0]['options'].get(INTENSITY, own)}"
        + (f" (of {len(tried[group.method])})" if len(tried[group.method]) > 1 else "")
        for group in chosen_of_each(groups)
    ]
    return f"Intensities are scaled by: {', '.join(told)}; where a method tried several rules, its best on validation."


def _chosen(members: list[Group]) -> Group:
    seeds = max(len(group.rows) for group in members)
    whole = [group for group in members if len(group.rows) == seeds]
    marked = [group for group in members if group.selected]
    return marked[0] if marked else max(whole, key=lambda group: _ordered(group.spread("val_dice").mean))


def _ordered(mean: float | None) -> float:
    return -1.0 if mean is None else mean


def average_ranks(columns: Iterable[Sequence[float | None]]) -> list[float]:
    """Mean rank of every method over columns, 1 is best.

    As the paper prints it: ties share the best rank of theirs, and a method without a value is ranked in no column.

    Args:
        columns: For every domain or study one value per method, as printed.

    Returns:
        One number per method; NaN where it has no value at all.
    """
    ranks = []
    for column in columns:
        known = [value for value in column if value is not None]
        ranks.append([math.nan if value is None else 1 + sum(other > value for other in known) for value in column])
    return [
        fmean(kept) if (kept := [rank for rank in method if math.isfinite(rank)]) else math.nan
        for method in zip(*ranks, strict=True)
    ]


def most_wait(results: Iterable[Row]) -> float:
    """The largest share of training time that went by waiting for data; another program's trials do not know theirs."""
    return max(float(result["data_wait"]) for result in results if result["data_wait"] is not None)


@dataclass(frozen=True)
class Rank:
    """A group's place among all of a table.

    Attributes:
        rank: 1 for the best mean Dice on unseen domains; equals share the best rank. None without such a Dice.
        unseen: That mean over seeds, 0..1, with its standard error.
    """

    group: Group
    rank: int | None
    unseen: Spread


def ranking(groups: Iterable[Group]) -> list[Rank]:
    """Ranks by unseen-domain Dice as it is printed: what reads alike in percent points is equal."""
    spreads = [(group, group.spread("unseen")) for group in groups]
    printed = [None if spread.mean is None else round(100 * spread.mean, 1) for _, spread in spreads]
    known = [value for value in printed if value is not None]
    return [
        Rank(group, None if value is None else 1 + sum(other > value for other in known), spread)
        for (group, spread), value in zip(spreads, printed, strict=True)
    ]


def display_name(row: Row) -> str:
    """How people write it: "DropGen p = 0.5", "DropGen + GIN p = 0.5", "ERM + TENT"."""
    options = {"p": row["p"], **row["options"]}
    said = ", ".join(
        f"{key} = {value:g}" if isinstance(value, float) else f"{key} = {value}"
        for key, value in options.items()
        if value is not None
    )
    method = " + ".join(NAMES.get(part, part) for part in row["method"].split("+"))
    return f"{method} {said}".strip()


def absent_name(row: Row) -> str:
    """What has no result: the method, and the seed where others may have one."""
    name = display_name({"p": None, **row})
    return name if row["seed"] is None else f"{name}, seed {row['seed']}"


@dataclass(frozen=True)
class ScoredCase:
    """One line of the case table: the Dice of every foreground class, NaN where the truth lacks it.

    Attributes:
        measures: By name of `measures.MEASURES`, the same of every class; none of an evaluation from before they were.
    """

    case: str
    subject: str
    domain: str
    split: str
    dice: Mapping[str, float]
    measures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Over the classes that the truth holds; NaN where it holds none."""
        return finite_mean(self.dice.values())

    def mean_of(self, measure: str) -> float:
        """Of a measure's amounts over classes; NaN where it applies to none."""
        return finite_mean(abs(value) for value in self.measures.get(measure, {}).values())


def finite_mean(values: Iterable[float]) -> float:
    """Mean of what is not NaN; NaN of nothing."""
    kept = [value for value in values if math.isfinite(value)]
    return fmean(kept) if kept else math.nan


def scored_cases(evaluation: Path) -> list[ScoredCase]:
    """The labelled cases of an evaluation's folder, best first."""
    found: dict[str, tuple[Mapping[str, str], dict[str, dict[str, float]]]] = {}
    with (evaluation / "cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            _, values = found.setdefault(row["case"], (row, {}))
            for name in row.keys() - CASE_COLUMNS:
                values.setdefault(name, {})[row["class"]] = float(row[name] or "nan")
    scored = [
        ScoredCase(name, row["subject"], row["domain"], row["split"], values["dice"], values)
        for name, (row, values) in found.items()
    ]
    return sorted(scored, key=lambda case: -case.mean if math.isfinite(case.mean) else 1.0)


def subject_scores(scored: Iterable[ScoredCase]) -> dict[tuple[str, str], float]:
    """Dice of each (domain, subject) whose truth holds a class, 0..1: cases averaged first, then classes."""
    grouped: dict[tuple[str, str], list[ScoredCase]] = {}
    for case in scored:
        grouped.setdefault((case.domain, case.subject), []).append(case)
    scores = {
        key: finite_mean(finite_mean(case.dice[name] for case in cases) for name in cases[0].dice)
        for key, cases in sorted(grouped.items())
    }
    return {key: score for key, score in scores.items() if math.isfinite(score)}


def _value(row: Row, column: str) -> float:
    if column in ("val_dice", "source_dice"):
        value = row[column]
    elif column == "unseen":
        known = [dice for dice in row["target_dice"].values() if dice is not None]
        value = fmean(known) if known else None
    else:
        value = row["target_dice"].get(column)
    return math.nan if value is None else float(value)


def _measured(row: Row, measure: str, domains: Sequence[str]) -> float:
    means = [spread["mean"] for spread in _measured_spreads(row, measure, domains)]
    return finite_mean(math.nan if mean is None else mean for mean in means)


def _subjects_measured(row: Row, measure: str, domains: Sequence[str]) -> int:
    return sum(spread["n"] for spread in _measured_spreads(row, measure, domains))


def _measured_spreads(row: Row, measure: str, domains: Sequence[str]) -> list[dict[str, Any]]:
    found = ((read_json(Path(row["evaluation"]) / "summary.json") or {}).get("measures") or {}).get("domains", {})
    return [found[name][measure] for name in domains if measure in found.get(name, {})]


def points(value: float | None) -> str:
    """A Dice of 0..1 in percent points."""
    return ABSENT if value is None or not math.isfinite(value) else f"{100 * value:.1f}"
