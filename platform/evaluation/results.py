"""An experiment's results as pages and tables show them: trials grouped by method, cases with their Dice."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

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

    def spread(self, column: str) -> Spread:
        """Over seeds, 0..1: "val_dice", "source_dice", an unseen domain, or "unseen" for their mean."""
        return Spread.of(_value(row, column) for row in self.rows)


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """Puts the seeds of each method with the same options together, in order of first appearance."""
    members: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        members.setdefault((row["method"], display_name(row)), []).append(row)
    return [Group(name, method, tuple(found)) for (method, name), found in members.items()]


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
    """One line of the case table: the Dice of every foreground class, NaN where the truth lacks it."""

    case: str
    subject: str
    domain: str
    split: str
    dice: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over the classes that the truth holds; NaN where it holds none."""
        present = [value for value in self.dice.values() if math.isfinite(value)]
        return fmean(present) if present else math.nan


def scored_cases(folder: Path) -> list[ScoredCase]:
    """The labelled cases of an evaluated trial's folder, best first."""
    found: dict[str, tuple[Mapping[str, str], dict[str, float]]] = {}
    with (folder / "evaluation" / "cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            _, dice = found.setdefault(row["case"], (row, {}))
            dice[row["class"]] = float(row["dice"] or "nan")
    scored = [
        ScoredCase(name, row["subject"], row["domain"], row["split"], dice) for name, (row, dice) in found.items()
    ]
    return sorted(scored, key=lambda case: -case.mean if math.isfinite(case.mean) else 1.0)


def _value(row: Row, column: str) -> float:
    if column in ("val_dice", "source_dice"):
        value = row[column]
    elif column == "unseen":
        known = [dice for dice in row["target_dice"].values() if dice is not None]
        value = fmean(known) if known else None
    else:
        value = row["target_dice"].get(column)
    return math.nan if value is None else float(value)


def points(value: float | None) -> str:
    """A Dice of 0..1 in percent points."""
    return ABSENT if value is None or not math.isfinite(value) else f"{100 * value:.1f}"
