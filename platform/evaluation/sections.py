"""The parts of the page that compare: further measures, pairs of methods, ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dropgen.platform.evaluation import charts
from dropgen.platform.evaluation.findings import VERDICTS, chance, findings, interval, signed
from dropgen.platform.evaluation.rank_plot import rank_plot
from dropgen.platform.evaluation.results import ABSENT, Group, average_ranks
from dropgen.platform.evaluation.significance import Pair, Significance
from dropgen.platform.evaluation.tables import COLUMNS, measure_notes, shown


def measures_section(groups: Sequence[Group], placeholder_spacing: Sequence[str]) -> dict[str, Any]:
    """Every measure of every line, its mean over those unseen domains where it has a value, and n."""
    domains = unseen_domains(groups)
    return {
        "columns": list(COLUMNS.values()),
        "rows": [
            {
                "name": group.name,
                "selected": group.selected,
                "cells": [
                    {"mean": shown(group.measured(name, domains).mean, name), "n": group.subjects(name, domains)}
                    for name in COLUMNS
                ],
            }
            for group in groups
        ],
        "notes": measure_notes(groups, placeholder_spacing),
    }


def pairs_section(found: Significance | None, groups: Sequence[Group]) -> dict[str, Any] | None:
    """The matrix of pairs and the diagram of ranks; None where there is nothing to compare."""
    if found is None:
        return None
    order = sorted(found.seeds, key=lambda name: sum(pair.second == name for pair in found.pairs))
    pairs = {(pair.first, pair.second): pair for pair in found.pairs}
    friedman = "" if found.friedman_p is None else f" Friedman's test that all are alike: p = {found.friedman_p:.3g}."
    return {
        "names": order,
        "rows": [
            {"name": name, "cells": [_cell(pairs.get((name, other)), found.draws) for other in order[1:]]}
            for name in order[:-1]
        ],
        "findings": findings(found),
        "ranks": None
        if found.critical is None
        else charts.data_uri(rank_plot(found.mean_ranks, found.critical), "svg"),
        "rank_note": f"Mean rank of every method within the n = {found.n} subjects of unseen domains, 1 is best; a bar "
        f"joins what Nemenyi's test cannot tell apart at 5%.{friedman}",
        "averages": _averages(groups),
    }


def unseen_domains(groups: Sequence[Group]) -> list[str]:
    """All that some trial was tested on."""
    return sorted({name for group in groups for row in group.rows for name in row["target_dice"]})


def _averages(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Every line's mean of its ranks in the single domains, ties sharing the best rank; empty for one domain."""
    domains = unseen_domains(groups)
    if len(domains) < 2:
        return []
    means = [[group.spread(name).mean for group in groups] for name in domains]
    ranks = average_ranks([[None if mean is None else round(100 * mean, 1) for mean in column] for column in means])
    found = sorted(zip(ranks, (group.name for group in groups), strict=True), key=lambda one: (math.isnan(one[0]), one))
    return [(name, ABSENT if math.isnan(rank) else f"{rank:.1f}") for rank, name in found]


def _cell(pair: Pair | None, draws: int) -> dict[str, str] | None:
    if pair is None:
        return None
    return {
        "gain": signed(pair.gain),
        "interval": interval(pair),
        "p": "" if pair.p is None else f"p = {pair.p:.3g}",
        "chance": chance(pair.not_better, draws),
        "source": signed(pair.source_gain),
        "verdict": pair.verdict,
        "said": VERDICTS[pair.verdict],
    }
