"""`docs/methods.md`: the registry as a page, with what each method costs where that has been measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from dropgen.manifest import REPOSITORY, read_json
from dropgen.platform.catalogue import Entry
from dropgen.platform.networks import PREDICTORS

COSTS = REPOSITORY / "docs" / "results" / "methods-cost.json"
ABSENT = "–"

TITLES = {
    "method": "Methods",
    "ablation": "Ablations",
    "composition": "Compositions",
    "adaptation": "Test-time methods",
    "extractor": "Extractors",
    "external": "External baselines",
}
NOTES = {
    "method": "An experiment names them in `methods`; `dropgen methods --yaml NAME` prints one to start from, "
    "and so for every part below. Predictors are the `network.name` that a method works with; "
    "`–` brings its own network or reads none.",
    "ablation": "DropGen with one part exchanged, and the extractor trained instead of read.",
    "composition": "DropGen on crops that another method changes first; each part keeps its own options. The other may "
    "change image and labels of a crop and nothing else: what reaches into layers, has a loss of its own or reads "
    "features does not go under DropGen. Where it moves anatomy (MixUp, CutOut), features have to be computed online.",
    "adaptation": "They change a trained model's prediction on each test volume: `dropgen evaluate --adapt NAME`, "
    "`dropgen segment --adapt NAME`, or `adaptations` of an experiment. They are tuned on the validation cases.",
    "extractor": "Any of them under any method that reads features, by `features.extractor`.",
    "external": "Trained by another program, scored by this one.",
}
HEADER = ("name", "acts on", "predictors", "hyperparameters", "searched", "cost", "source")


def markdown(entries: Sequence[Entry], record: Mapping[str, Any] | None = None) -> str:
    """The page.

    Args:
        entries: The catalogue.
        record: What `dropgen bench step --methods all` wrote; by default the copy beside the page.
    """
    record = record if record is not None else read_json(COSTS) or {}
    costs = _costs(record.get("rows", ()))
    lines = [
        "# Methods",
        "",
        "Written by `dropgen methods --markdown > docs/methods.md`; do not edit.",
        "",
        _cost(record),
    ]
    for kind, members in itertools.groupby(entries, key=lambda entry: entry.kind):
        lines += ["", f"## {TITLES[kind]}", "", NOTES[kind], "", _row(HEADER), f"|{'---|' * len(HEADER)}"]
        lines += [_row(_cells(entry, costs.get(entry.name, ABSENT))) for entry in members]
    return "\n".join([*lines, ""])


def _cost(record: Mapping[str, Any]) -> str:
    told = (
        "Cost is the time of a training step as a multiple of ERM's, loading and augmentation included, all methods "
        "timed in turn in one run of `dropgen bench step --methods all`"
    )
    if not record:
        return f"{told}; it has not been measured yet."
    network, machine = record["settings"]["experiment"]["network"], record["machine"]
    on = machine["accelerator"] or f"{machine['cores']} cores of {machine['cpu']}"
    return (
        f"{told}: {on}, crops of {record['settings']['crop']} voxels, network {network['name']} with base "
        f"{network['base']} and {network['downs']} downsamplings, commit {record['commit']}. The repeats of one row "
        f"lie up to {_spread(record['rows']):.0%} of their median apart, so that a few hundredths more or less say "
        "nothing. Raw rows: [results/methods-cost.json](results/methods-cost.json)."
    )


def _spread(rows: Iterable[Mapping[str, Any]]) -> float:
    """The largest of all rows' ranges, as a share of the median."""
    measured: list[list[float]] = [row["raw_s"] for row in rows if row["raw_s"]]
    return max((max(raw) - min(raw)) / median(raw) for raw in measured)


def _costs(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """By method: `1.02`, or `1.05 stored, 1.31 online` where it reads features."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["ratio_to_erm"] is not None:
            source = "" if row["features"] == "none" else f" {row['features']}"
            found.setdefault(row["method"], []).append(f"{row['ratio_to_erm']:.2f}{source}")
    return {method: ", ".join(told) for method, told in found.items()}


def _cells(entry: Entry, cost: str) -> tuple[str, ...]:
    options = ", ".join(f"{key} = {_value(value)}" for key, value in entry.hyperparameters.items())
    space = "; ".join(f"{key}: {', '.join(map(_value, values))}" for key, values in entry.search_space.items())
    predictors = "all" if entry.predictors == tuple(PREDICTORS) else ", ".join(entry.predictors)
    return (
        f"`{entry.name}`", entry.acts_on, predictors or ABSENT, options or ABSENT, space or ABSENT, cost, entry.source,
    )  # fmt: skip


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
